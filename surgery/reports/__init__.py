"""Reports: values lowered to text and JSON.

A file here that bears the name of the file where a value is made (``parameters.py``) registers
how that value becomes a ``Report``: facts, tables and notes (``report.py``). ``text.py`` and
``json.py`` lower any report, so a new value needs one function and a new form one file. Importing
this package registers them all; ``surgery.shown`` says how values get here without importing it.
The way in is ``surgery.report(value, "text")`` or ``print(value)``.
"""

from surgery.reports import (
    example,
    graph,
    heads,
    json,
    parameters,
    plan,
    registry,
    text,
    verdicts,
    weights,
)

__all__ = ["example", "graph", "heads", "json", "parameters", "plan", "registry", "text"]
__all__ += ["verdicts", "weights"]
