"""Reports as HTML: a page in one file that needs no network, or a fragment for a notebook.

Everything a report holds is data here. Names are cleaned as they are for a terminal, jinja2 escapes
what it puts into the page, and what plotly would read as markup of its own is escaped once more.
The page forbids itself to load anything (Content-Security-Policy), and runs the scripts it was
made with and no other.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, get_args

from surgery import shown
from surgery.errors import ArgumentError
from surgery.reports.chart import Chart, Part, Shade
from surgery.reports.report import Column, Report, Table, Unit, Value, describe
from surgery.reports.text import DEPTH, NUMERIC, ROWS, cell, clean, present, visible, write

if TYPE_CHECKING:
    import jinja2

    from surgery.findings import Head

# What colours say, where the word for them does not.
_WORDS = {
    "partly": "in part",
    "packed": "packed weights",
    "skipped": "shape mismatch",
    "tensors": "real numbers",
    "integers": "whole numbers",
}
# The order of colours in a legend.
_SHADES: tuple[str, ...] = get_args(Shade)
# Characters of a column whose cells stay on one line.
_SHORT = 34
# Rows of a table that a page shows before it is asked for the rest.
_MANY = 300


def as_html(value: object, *, page: bool = True, heads: Iterable[Head] = ()) -> str:
    """Lower a value to HTML.

    Args:
        value: a report, or anything that can be described as one.
        page: a whole page with charts that zoom and a search; otherwise a fragment without
            scripts, as notebooks show it.
        heads: what ``find_heads`` returned, to be marked in a chart of modules.

    Returns:
        One file of HTML. It loads nothing, and names in it are text. A page with a chart holds the
        code that draws it, some 5 MB; one without is as small as what it says.

    Raises:
        ArgumentError: nobody has said how to describe this value, or an option is wrong.

    Example:
        >>> import torch, surgery
        >>> from surgery.reports.html import as_html
        >>> audit = surgery.audit(torch.nn.ModuleDict({"<u>": torch.nn.Linear(2, 2)}))
        >>> "<u>" in as_html(audit, page=False), "&lt;u&gt;" in as_html(audit, page=False)
        (False, True)
    """
    if not isinstance(page, bool):
        raise ArgumentError(
            "a page is made or it is not",
            where="page",
            expected="True or False",
            found=repr(page),
            fix="page=True",
        )
    report = describe(value)
    marked = _addresses(heads)
    if not page:
        return _environment().get_template("fragment.html.j2").render(_said(report, whole=False))
    nested = [_drawn(chart, marked) for chart in report.charts if chart.form == "nested"]
    nested = [chart for chart in nested if chart["sizes"]]
    scripts = [_file("page.js"), *([_plotly()] if nested else [])]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **_said(report, whole=True),
            nested=nested,
            legend=_legend(nested),
            many=_MANY,
            plotly=_plotly() if nested else "",
            hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        )
    )


def _addresses(heads: Iterable[Head]) -> frozenset[str]:
    found: set[str] = set()
    for head in () if isinstance(heads, str) else heads:
        addresses = getattr(head, "addresses", None)
        if not isinstance(addresses, tuple):
            break
        found.update(addresses)
    else:
        if not isinstance(heads, str):
            return frozenset(found)
    raise ArgumentError(
        "these are no heads",
        where="heads",
        expected="what find_heads returned",
        found=type(heads).__name__,
        fix='surgery.report(value, "html", heads=surgery.find_heads(model))',
    )


@dataclass(frozen=True, slots=True)
class _Section:
    """One table, ready to be written.

    Attributes:
        columns: of each its label, the style of its cells, and its key.
        snug: whether every cell is short, so that no column wants the width of the page.
        rows: of each its level, the address it is about, and its cells: text and style.
        left_out: what is not in it, in words.
    """

    key: str
    title: str
    columns: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[int, str, tuple[tuple[str, str], ...]], ...]
    tree: bool
    snug: bool
    open: bool
    left_out: tuple[str, ...]


def _said(report: Report, *, whole: bool) -> dict[str, Any]:
    """What the templates write, all of it clean."""
    tables = [t for t in report.tables if t.rows and t.presence != "data"]
    if not whole:
        tables = [t for t in tables if t.presence != "page"]
    verdicts = [
        row[place]
        for table in tables
        for place, column in enumerate(table.columns)
        if column.unit == "verdict"
        for row in table.rows
    ]
    return {
        # What the heading says already is not said above it as well.
        "kind": "" if report.kind in clean(report.title).lower() else report.kind,
        "schema": f"surgery/{report.kind}/{report.version}",
        "title": clean(report.title),
        "lead": clean(report.lead),
        "tone": "" if not verdicts else "ok" if all(verdicts) else "failed",
        "facts": [
            (clean(fact.label), _written(fact.value, fact.unit), _style(fact.unit))
            for fact in report.facts
            if present(fact, [fact.value])
        ],
        "bars": [_bar(chart) for chart in report.charts if chart.form == "bar" and chart.parts],
        "sections": [_section(table, whole) for table in tables],
        "notes": [clean(note) for note in report.notes],
    }


def _section(table: Table, whole: bool) -> _Section:
    rows, left_out = visible(table, *((None, None) if whole else (DEPTH, ROWS)))
    columns = [
        (place, column)
        for place, column in enumerate(table.columns)
        if present(column, [row[place] for row, _ in rows])
    ]
    named = next((place for place, column in columns if column.unit == "address"), None)
    cells = [[_cell(row[place], column, level) for place, column in columns] for row, level in rows]
    short = [
        (bool(_style(column.unit)) and column.unit != "address")
        or max(len(line) for text, _ in written for line in text.split("\n")) <= _SHORT
        for (_, column), written in zip(columns, zip(*cells, strict=True), strict=True)
    ]
    return _Section(
        table.key,
        clean(table.title),
        tuple((clean(column.label), _style(column.unit), column.key) for _, column in columns),
        tuple(
            (
                level or 0,
                "" if named is None else _address(row[named]),
                tuple(
                    (text, f"{style} short".strip() if brief else style)
                    for (text, style), brief in zip(written, short, strict=True)
                ),
            )
            for (row, level), written in zip(rows, cells, strict=True)
        ),
        bool(table.levels),
        all(short),
        table.presence != "page" or table.key == "changes",
        tuple(left_out),
    )


def _address(value: Value) -> str:
    """The address a row is about: the first, where it is about a tensor or module with several."""
    first = value[0] if isinstance(value, tuple) and value else value
    return clean(first) if isinstance(first, str) else ""


def _cell(value: Value, column: Column, level: int | None) -> tuple[str, str]:
    text = _written(value, column.unit)
    if column.unit == "address" and level is not None:
        text = cell(value, column.unit, level).removeprefix("  " * level)
    if column.unit == "verdict":
        return text, "verdict ok" if value else "verdict failed"
    if column.unit == "label":
        return text, f"label label-{text.split(',')[0].replace(' ', '-')}"
    return text, _style(column.unit)


def _style(unit: Unit) -> str:
    if unit in NUMERIC or unit == "change":
        return "number"
    return {"address": "name", "label": "label", "verdict": "verdict"}.get(unit, "")


def _written(value: Value, unit: Unit) -> str:
    if unit == "change" and isinstance(value, tuple) and value[0] == value[1]:
        return write(value[0], "count")
    text = write(value, unit)
    return text.replace(" -> ", " → ") if unit == "change" else text


def _bar(chart: Chart) -> dict[str, Any]:
    whole = sum(part.size for part in chart.parts)
    return {
        "title": clean(chart.title),
        "of": chart.of,
        "parts": [
            (clean(part.label), write(part.size, "count"), part.size, part.shade)
            for part in chart.parts
        ],
        "shares": [write(part.size / whole, "share") for part in chart.parts],
    }


def _drawn(chart: Chart, heads: frozenset[str]) -> dict[str, Any]:
    """What the script of the page needs of a chart: columns, and what plotly reads escaped."""
    parts = [
        replace(part, marks=("head", *part.marks))
        if part.address in heads and "head" not in part.marks
        else part
        for part in chart.parts
    ]
    whole = parts[0].size if parts else 0
    return {
        "key": chart.key,
        "title": clean(chart.title),
        "of": chart.of,
        "whole": f"{write(whole, chart.unit)} {chart.of if chart.unit == 'count' else ''}".strip(),
        "names": [clean(part.address) for part in parts],
        "titles": [clean(part.label) for part in parts],
        "labels": [_plain(part.label) for part in parts],
        "parents": [part.parent for part in parts],
        "sizes": [part.size for part in parts],
        "shades": [part.shade for part in parts],
        "marks": [list(part.marks) for part in parts],
        "texts": [write(part.size, chart.unit) for part in parts],
        "hovers": [_hover(part, chart, whole) for part in parts],
    }


def _hover(part: Part, chart: Chart, whole: int) -> str:
    lines = [
        f"<b>{_plain(part.address or part.label)}</b>",
        _plain(part.kind),
        f"{write(part.size, chart.unit)} ({write(part.size / whole, 'share')})",
        ", ".join([_WORDS.get(part.shade, part.shade), *part.marks]),
    ]
    return "<br>".join(line for line in lines if line)


def _plain(name: str) -> str:
    """Text that plotly shows as it is: it reads tags and entities of its own in every label."""
    return html.escape(clean(name), quote=False)


def _legend(charts: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    found = {shade for chart in charts for shade in chart["shades"]}
    shades = [shade for shade in _SHADES if shade in found]
    marks = dict.fromkeys(mark for chart in charts for each in chart["marks"] for mark in each)
    return {
        "shades": [(shade, _WORDS.get(shade, shade)) for shade in shades],
        "marks": [(mark, mark) for mark in marks],
    }


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    # jinja2 costs some 30 ms, and most values are never shown in a browser.
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Our own files, and nothing of a report, go in as they are.
    environment.globals["file"] = lambda name: Markup(_file(name))
    environment.filters["script"] = Markup
    return environment


def _file(name: str) -> str:
    return (files("surgery.reports") / "templates" / name).read_text("utf-8")


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


@lru_cache(maxsize=4)
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


shown.FORMS["html"] = as_html
