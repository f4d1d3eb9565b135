"""Reports: values lowered to text, JSON and HTML.

A file here that bears the name of the file where a value is made (``parameters.py``) registers
how that value becomes a ``Report``: facts, tables and notes (``report.py``). ``text.py`` and
``json.py`` lower any report, so a new value needs one function and a new form one file. Importing
this package costs no torch and loads no form; ``report.describe`` imports the files in ``VALUES``
when it first meets a value that it does not know. ``surgery.shown`` says how values get here
without importing it. The way in is ``surgery.report(value, "text")`` or ``print(value)``.
"""

# The forms. Each is registered by the file of its name, which is imported when it is first asked
# for: a text needs nothing of what makes a page.
FORMS = ("html", "json", "text")

# The files that register values.
VALUES = (
    "contents",
    "correspondence",
    "difference",
    "example",
    "graph",
    "heads",
    "inspection",
    "layers",
    "optimizers",
    "parameters",
    "plan",
    "recipe",
    "registry",
    "verdicts",
    "weights",
)

__all__ = ["FORMS", "VALUES"]
