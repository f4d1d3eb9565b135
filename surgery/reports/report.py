"""What a report is, and the table of what becomes one.

    @describe.register
    def _(graph: Graph) -> Report:
        return Report("graph", "Graph", facts=(...), tables=(...), notes=graph.blind_spots)

is all it takes to give a value a text and a JSON form.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import singledispatch
from importlib import import_module
from typing import Any, Literal, TypeAlias

from surgery import shown
from surgery.errors import ArgumentError
from surgery.reports.chart import Chart

# Whatever JSON can hold, with tuples for lists.
Value: TypeAlias = str | int | float | bool | tuple["Value", ...] | None

# How a value is written for people: a share is 0 to 1; an address is shortened below its parent in
# a tree; a change is a pair of numbers; a verdict is whether a check held; an answer is yes or no;
# a list is several strings on one line; a label is one of a few words.
Unit: TypeAlias = Literal[
    "text", "count", "bytes", "share", "address", "change", "verdict", "answer", "list", "label"
]

# Where it is written: everywhere, for people only where it is not zero throughout, in JSON and on
# pages (which fold it away), or in JSON only.
Presence: TypeAlias = Literal["always", "where any", "page", "data"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is so: a key for programs, a label for people, and the value."""

    key: str
    label: str
    value: Value
    unit: Unit = "text"
    presence: Presence = "always"


@dataclass(frozen=True, slots=True)
class Column:
    """What the values in one column of a table are."""

    key: str
    label: str
    unit: Unit = "text"
    presence: Presence = "always"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values, flat or as a tree.

    Attributes:
        key: its name in JSON.
        title: its heading in a text.
        columns: one for each value of a row.
        rows: the values, raw: numbers are not formatted, names are not escaped.
        levels: of each row, how deep it is in the tree; empty for a flat table.
        presence: ``data`` for a table that is in JSON only, ``page`` for one no text shows.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    levels: tuple[int, ...] = ()
    presence: Presence = "always"


@dataclass(frozen=True, slots=True)
class Report:
    """A value as facts, tables and notes, ready to be lowered to any form.

    It is complete: a lowering leaves out (rows that are too deep, columns of zeros), and says so.

    Attributes:
        kind: what it reports on, for programs: ``audit``.
        title: the same for people.
        facts: what is so.
        tables: what there are many of.
        notes: sentences: blind spots, what was left out and why.
        lead: what it comes to, in a sentence or two for people; the facts say the same.
        version: of the facts and tables of this kind; another one where a key goes or changes.
        charts: pictures of the numbers in the tables, for pages alone.
    """

    kind: str
    title: str
    facts: tuple[Fact, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    lead: str = ""
    version: int = 1
    charts: tuple[Chart, ...] = ()


def report(value: object, form: str = "text", **options: Any) -> str:
    """Lower a value of surgery (a graph, heads, a plan, an outcome, an audit) to another form.

    ``print(value)`` shows the text as well, with the options left out.

    Args:
        value: what surgery returned.
        form: ``"text"`` for people, ``"json"`` for programs: every row and every number, under
            the schema that its first entry names; ``"html"`` for a page in one file, which needs
            no network and loads nothing.
        options: of a text ``width`` (columns of the page), ``depth`` (levels of a tree),
            ``rows`` (of a table without levels) and ``styled`` (colours as terminal codes); of
            JSON ``indent`` (spaces for each level, or None); of HTML ``heads`` (what
            ``find_heads`` returned, to be marked) and ``page`` (False: a fragment for a
            notebook, without charts that zoom).

    Returns:
        The text, the JSON or the page. Names of a model are data in all of them: they steer no
        terminal and no browser.

    Raises:
        ArgumentError: no such form or option, or nobody can describe this value.

    Example:
        >>> import json, torch, surgery
        >>> model = torch.nn.Linear(8, 5)
        >>> outcome = surgery.replace_head(model, 3, heads="", example=torch.zeros(2, 8))
        >>> print(surgery.report(outcome, width=80).splitlines()[0])
        replace_head('': 3)
        >>> json.loads(surgery.report(outcome, "json"))["schema"]
        'surgery/outcome/1'
    """
    return shown.lower(value, form, **options)


@singledispatch
def describe(value: object) -> Report:
    """Make a report of a value, by its type.

    Args:
        value: a report, or anything that a file of ``surgery.reports`` registers.

    Returns:
        The report.

    Raises:
        ArgumentError: nothing is registered for this type.

    Example:
        >>> import torch, surgery
        >>> import surgery.reports
        >>> from surgery.reports.report import describe
        >>> describe(surgery.audit(torch.nn.Linear(2, 2))).facts[0]
        Fact(key='total', label='parameters', value=6, unit='count', presence='always')
    """
    if _register(type(value)):
        return describe(value)
    names = sorted(kind.__name__ for kind in describe.registry if kind is not object)
    raise ArgumentError(
        "nobody has said how to report on this",
        where="value",
        expected=" or ".join(names),
        found=type(value).__name__,
        fix="@surgery.reports.report.describe.register on a function that returns a Report",
    )


def _register(kind: type) -> bool:
    """Import the files that register values, first the one that bears the name of this value's.

    Returns:
        Whether any was imported: a value may be known now.
    """
    from surgery.reports import VALUES

    own = [name for name in VALUES if name == kind.__module__.rpartition(".")[2]]
    for names in own, VALUES:
        files = [f"surgery.reports.{name}" for name in names]
        missing = [file for file in files if file not in sys.modules]
        for file in missing:
            import_module(file)
        if missing:
            return True
    return False


@describe.register
def _(report: Report) -> Report:
    return report
