"""Another order, or fewer rows, of a table in a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from surgery.errors import ArgumentError
from surgery.reports.report import Report, Table, Value


def arrange(
    report: Report, key: str, *, by: str | None = None, having: str | None = None
) -> Report:
    """Sort the rows of one table, or leave some out; a tree stays one.

    Args:
        report: a report.
        key: which of its tables.
        by: the column to sort by: numbers from the largest, text in order. In a tree, what lies
            below one row is sorted.
        having: a column: rows in which it is zero or empty are left out, with a note. In a tree
            the root stays.

    Returns:
        Another report.

    Raises:
        ArgumentError: there is no such table or column.

    Example:
        >>> import torch, surgery
        >>> from surgery.reports.report import describe
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(2, 9))
        >>> found = arrange(describe(surgery.audit(model)), "modules", by="total")
        >>> [row[0] for row in found.tables[1].rows]
        ['', '1', '0']
    """
    tables = {table.key: table for table in report.tables}
    if key not in tables:
        raise _unknown("table", key, list(tables))
    table = tables[key]
    levels = table.levels or (0,) * len(table.rows)
    rows = list(zip(levels, table.rows, strict=True))
    notes = report.notes
    if having is not None:
        column = _column(table, having)
        kept = [item for item in rows if item[1][column] or (table.levels and not item[0])]
        label = table.columns[column].label or having
        left = len(rows) - len(kept)
        notes += (f"{left:,} rows without {label} are left out",) if left else ()
        rows = kept
    if by is not None:
        rows = list(_sorted(rows, _column(table, by)))
    arranged = replace(
        table,
        rows=tuple(row for _, row in rows),
        levels=tuple(level for level, _ in rows) if table.levels else (),
    )
    changed = tuple(arranged if each is table else each for each in report.tables)
    return replace(report, tables=changed, notes=notes)


_Rows = list[tuple[int, tuple[Value, ...]]]


def _sorted(rows: _Rows, column: int) -> Iterator[tuple[int, tuple[Value, ...]]]:
    """Siblings in order, each with what lies below it."""
    families: list[_Rows] = []
    for level, row in rows:
        if not families or level <= families[0][0][0]:
            families.append([])
        families[-1].append((level, row))
    for first, *below in sorted(families, key=lambda family: _order(family[0][1][column])):
        yield first
        yield from _sorted(below, column)


def _order(value: Value) -> tuple[bool, float, str]:
    number = value if isinstance(value, (int, float)) else 0
    return value is None, -number, value if isinstance(value, str) else ""


def _column(table: Table, key: str) -> int:
    keys = [column.key for column in table.columns]
    if key not in keys:
        raise _unknown("column", key, keys)
    return keys.index(key)


def _unknown(what: str, key: str, known: list[str]) -> ArgumentError:
    return ArgumentError(
        f"there is no such {what}",
        where=what,
        expected=" or ".join(known),
        found=repr(key),
        fix=f"name a {what} that the report has",
    )
