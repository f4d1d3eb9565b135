"""Reports as plain text, for people, laid out by rich."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from surgery import shown
from surgery.errors import ArgumentError
from surgery.reports.report import Column, Fact, Report, Table, Unit, Value, describe

if TYPE_CHECKING:
    import rich.table

DEPTH = 2
WIDTH = 100

_NUMERIC = frozenset({"count", "bytes", "share"})
# What names ask for before they are folded, and what lies between columns.
_NAME, _GAP = 20, 3


def as_text(value: object, *, depth: int = DEPTH, width: int = WIDTH, styled: bool = False) -> str:
    """Lower a value to text.

    Args:
        value: a report, or anything that can be described as one.
        depth: levels of a tree to show below its root. What lies deeper is in the numbers of the
            rows above it.
        width: columns of the page.
        styled: with colours, as terminal codes.

    Returns:
        The text, with no newline at its end and no spaces at the end of a line. Names in it are
        data: they are never read as markup, and control characters are written as escapes.

    Raises:
        ArgumentError: nobody has said how to describe this value, or a number is out of range.

    Example:
        >>> import torch, surgery
        >>> from surgery.reports.text import as_text
        >>> as_text(surgery.audit(torch.nn.Linear(2, 2))).splitlines()[1].split()
        ['parameters', '6']
    """
    for name, number, least in ("depth", depth, 0), ("width", width, 60):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ArgumentError(
                f"the {name} of a text is a whole number",
                where=name,
                expected=f"{least} or more",
                found=repr(number),
                fix=f"{name}={max(least, DEPTH if name == 'depth' else WIDTH)}",
            )
    return _draw(describe(value), depth, width, styled)


def clean(name: str) -> str:
    r"""Write what does not print (control characters, terminal codes) as escapes.

    Args:
        name: text from a model or a file.

    Returns:
        The same text where it prints.

    Example:
        >>> print(clean("fc\x1b[2J"))
        fc\x1b[2J
    """
    if name.isprintable():
        return name
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )


def write(value: Value, unit: Unit = "text") -> str:
    """Write one value for people.

    Args:
        value: the raw value.
        unit: what it is: a ``count``, ``bytes``, a ``share`` from 0 to 1, an ``address`` or text.

    Returns:
        One line; of several strings, one line each.

    Example:
        >>> write(25_557_032, "count"), write(102_440_000, "bytes"), write(0.125, "share")
        ('25,557,032', '97.7 MiB', '12.5 %')
    """
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "\n".join(map(clean, value))
    if isinstance(value, (str, bool)):
        return clean(str(value))
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return _bytes(value)
    return f"{value:,}"


def _bytes(size: float) -> str:
    if size < 1024:
        return f"{size:,} B"
    for name in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {name}"
    return f"{size / 1024:,.1f} TiB"


def _draw(report: Report, depth: int, width: int, styled: bool) -> str:
    # rich costs some 50 ms, and most values are never printed.
    from rich.console import Console
    from rich.text import Text

    page = io.StringIO()
    console = Console(
        file=page,
        width=width,
        force_terminal=styled,
        force_jupyter=False,
        color_system="standard" if styled else None,
        legacy_windows=False,
    )
    console.print(Text(clean(report.title), "bold"))
    if report.facts:
        console.print(_facts(report.facts))
    for table in report.tables:
        if table.rows:
            console.print()
            console.print(Text(clean(table.title), "bold"))
            grid, dropped = _table(table, depth, width)
            console.print(grid)
            hidden = sum(level > depth for level in table.levels)
            if hidden:
                console.print(Text(f"  and {hidden:,} deeper, in the rows above them", "dim"))
            if dropped:
                console.print(Text(f"  no room for: {', '.join(dropped)}", "dim"))
    if report.notes:
        console.print()
        for note in report.notes:
            console.print(Text(f"note: {clean(note)}"))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _facts(facts: tuple[Fact, ...]) -> rich.table.Table:
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2), pad_edge=False)
    grid.add_column()
    grid.add_column(justify="right")
    for fact in facts:
        if fact.presence == "always" or (fact.presence == "where any" and fact.value):
            grid.add_row(Text(clean(fact.label)), Text(write(fact.value, fact.unit)))
    return grid


def _table(table: Table, depth: int, width: int) -> tuple[rich.table.Table, list[str]]:
    """The table as rich draws it, and the columns for which the page is too narrow."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    levels = table.levels or (0,) * len(table.rows)
    rows = [
        (row, level if table.levels else None)
        for row, level in zip(table.rows, levels, strict=True)
        if level <= depth
    ]
    columns = {
        column: [_cell(row[place], column.unit, level) for row, level in rows]
        for place, column in enumerate(table.columns)
        if _present(column, [row[place] for row, _ in rows])
    }
    dropped = _narrow(columns, width)
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        numeric = column.unit in _NUMERIC
        grid.add_column(
            Text(clean(column.label)),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
        )
    for cells in zip(*columns.values(), strict=True):
        grid.add_row(*map(Text, cells))
    return grid, dropped


def _narrow(columns: dict[Column, list[str]], width: int) -> list[str]:
    """Drop what may be left out, from the right, until the names have room."""

    def room(column: Column, cells: list[str]) -> int:
        longest = max(len(line) for cell in [column.label, *cells] for line in cell.split("\n"))
        return longest if column.unit in _NUMERIC else min(longest, _NAME)

    dropped: list[str] = []
    optional = [column for column in columns if column.presence == "where any"]
    while optional and sum(room(*item) + _GAP for item in columns.items()) - _GAP > width:
        column = optional.pop()
        del columns[column]
        dropped.insert(0, clean(column.label))
    return dropped


def _present(column: Column, values: list[Value]) -> bool:
    return column.presence == "always" or (column.presence == "where any" and any(values))


def _cell(value: Value, unit: Unit, level: int | None) -> str:
    if unit == "address" and level is not None and isinstance(value, str):
        name = clean(value.rpartition(".")[2])
        return "  " * level + name if level else name or "(the model)"
    return write(value, unit)


shown.FORMS["text"] = as_text
