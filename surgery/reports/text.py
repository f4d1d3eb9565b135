"""Reports as plain text, for people, laid out by rich."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgery import shown
from surgery.errors import ArgumentError
from surgery.reports.report import Column, Fact, Report, Table, Unit, Value, describe

if TYPE_CHECKING:
    import rich.table

DEPTH = 2
WIDTH = 100
ROWS = 40

NUMERIC = frozenset({"count", "bytes", "share"})
_ANSWERS = {"verdict": ("FAILED", "ok"), "answer": ("no", "yes")}
# What names ask for before they are folded, and what lies between columns.
_NAME, _GAP = 20, 3


def as_text(
    value: object,
    *,
    depth: int = DEPTH,
    width: int = WIDTH,
    rows: int = ROWS,
    styled: bool = False,
) -> str:
    """Lower a value to text.

    Args:
        value: a report, or anything that can be described as one.
        depth: levels of a tree to show below its root. What lies deeper is in the numbers of the
            rows above it.
        width: columns of the page.
        rows: of a table without levels, how many to show.
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
    defaults = {"depth": DEPTH, "width": WIDTH, "rows": ROWS}
    for name, number, least in ("depth", depth, 0), ("width", width, 60), ("rows", rows, 1):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ArgumentError(
                f"the {name} of a text is a whole number",
                where=name,
                expected=f"{least} or more",
                found=repr(number),
                fix=f"{name}={defaults[name]}",
            )
    return _draw(describe(value), _Page(depth, width, rows, styled))


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
        unit: what it is: a ``count``, ``bytes``, a ``share`` from 0 to 1, an ``address``, a
            ``change`` of two numbers, a ``verdict`` or ``answer`` (both are bool), a ``list``
            or text.

    Returns:
        One line; of several strings that are no list, one line each.

    Example:
        >>> write(25_557_032, "count"), write(102_440_000, "bytes"), write(0.125, "share")
        ('25,557,032', '97.7 MiB', '12.5 %')
        >>> write((5130, 2565), "change"), write(False, "verdict"), write(False, "answer")
        ('5,130 -> 2,565 (-2,565)', 'FAILED', 'no')
    """
    if value is None:
        return ""
    if isinstance(value, tuple):
        return _several(value, unit)
    if value == "" and unit == "address":
        return "(the model)"
    if isinstance(value, bool) and unit in _ANSWERS:
        return _ANSWERS[unit][value]
    if isinstance(value, (str, bool)):
        return clean(str(value))
    if unit == "share":
        return _share(value)
    if unit == "bytes":
        return _bytes(value)
    return f"{value:,}"


def _several(values: tuple[Value, ...], unit: Unit) -> str:
    if unit == "change":
        before, after = (value for value in values if isinstance(value, int))
        return f"{before:,} -> {after:,} ({after - before:+,})"
    on_one_line = unit == "list" or all(isinstance(value, int) for value in values)
    return (", " if on_one_line else "\n").join(write(value, unit) for value in values)


def _share(share: float) -> str:
    """In percent; a little is not nothing, and nearly all is not all."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def _bytes(size: float) -> str:
    if size < 1024:
        return f"{size:,} B"
    for name in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {name}"
    return f"{size / 1024:,.1f} TiB"


@dataclass(frozen=True)
class _Page:
    """What a reader wants to see, and how wide."""

    depth: int
    width: int
    rows: int
    styled: bool


def _draw(report: Report, page: _Page) -> str:
    # rich costs some 50 ms, and most values are never printed.
    from rich.console import Console
    from rich.text import Text

    written = io.StringIO()
    console = Console(
        file=written,
        width=page.width,
        force_terminal=page.styled,
        force_jupyter=False,
        color_system="standard" if page.styled else None,
        legacy_windows=False,
    )
    console.print(Text(clean(report.title), "bold"))
    if report.lead:
        console.print(Text(clean(report.lead)))
    facts = [fact for fact in report.facts if present(fact, [fact.value])]
    if facts:
        console.print(_facts(facts))
    for table in report.tables:
        if table.rows and table.presence not in ("data", "page"):
            console.print()
            console.print(Text(clean(table.title), "bold"))
            grid, left_out = _table(table, page)
            console.print(grid)
            for line in left_out:
                console.print(Text(f"  {line}", "dim"))
    if report.notes:
        console.print()
        for note in report.notes:
            console.print(Text(f"note: {clean(note)}"))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _facts(facts: list[Fact]) -> rich.table.Table:
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2), pad_edge=False)
    grid.add_column()
    numbers = all(fact.unit in NUMERIC for fact in facts)
    grid.add_column(justify="right" if numbers else "left", overflow="fold")
    for fact in facts:
        grid.add_row(Text(clean(fact.label)), Text(write(fact.value, fact.unit)))
    return grid


def _table(table: Table, page: _Page) -> tuple[rich.table.Table, list[str]]:
    """The table as rich draws it, and what is not in it, in words."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    rows, left_out = visible(table, page.depth, page.rows)
    columns = {
        column: [cell(row[place], column.unit, level) for row, level in rows]
        for place, column in enumerate(table.columns)
        if present(column, [row[place] for row, _ in rows])
    }
    dropped = _narrow(columns, page.width)
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, cells in columns.items():
        numeric = column.unit in NUMERIC
        # An address in one piece can be copied; shapes and words break better.
        whole = column.unit == "address" and not table.levels
        grid.add_column(
            Text(clean(column.label)),
            justify="right" if numeric else "left",
            no_wrap=numeric or (whole and _longest(column, cells) <= page.width // 2),
            overflow="fold",
        )
    for written in zip(*columns.values(), strict=True):
        grid.add_row(*map(Text, written))
    return grid, [*left_out, *([f"no room for: {', '.join(dropped)}"] if dropped else [])]


def visible(
    table: Table, depth: int | None, most: int | None
) -> tuple[list[tuple[tuple[Value, ...], int | None]], list[str]]:
    """The rows of a table that people are shown.

    Args:
        table: the table.
        depth: of a tree, levels to show below its root; None for all.
        most: of a table without levels, how many rows to show; None for all.

    Returns:
        Each row with its level (None where the table has no levels), and what is left out, in
        words.
    """
    levels = table.levels or (0,) * len(table.rows)
    rows = [
        (row, level if table.levels else None)
        for row, level in zip(table.rows, levels, strict=True)
        if depth is None or level <= depth
    ]
    deeper = len(table.rows) - len(rows)
    beyond = 0 if table.levels or most is None else max(len(rows) - most, 0)
    left_out = {
        f"and {deeper:,} deeper, in the rows above them": deeper,
        f"and {beyond:,} more": beyond,
    }
    return rows[: len(rows) - beyond], [line for line, number in left_out.items() if number]


def _narrow(columns: dict[Column, list[str]], width: int) -> list[str]:
    """Drop what may be left out, from the right, until the names have room."""

    def room(column: Column, cells: list[str]) -> int:
        longest = _longest(column, cells)
        return longest if column.unit in NUMERIC else min(longest, _NAME)

    dropped: list[str] = []
    optional = [column for column in columns if column.presence == "where any"]
    while optional and sum(room(*item) + _GAP for item in columns.items()) - _GAP > width:
        column = optional.pop()
        del columns[column]
        dropped.insert(0, clean(column.label))
    return dropped


def _longest(column: Column, cells: list[str]) -> int:
    return max(len(line) for cell in [column.label, *cells] for line in cell.split("\n"))


def present(item: Column | Fact, values: Sequence[Value]) -> bool:
    """Whether people are shown a fact or a column that has these values."""
    return item.presence == "always" or (item.presence == "where any" and any(values))


def cell(value: Value, unit: Unit, level: int | None) -> str:
    """Write one value of a table for people; in a tree, an address below its parent."""
    if unit == "address" and level is not None and isinstance(value, str):
        return "  " * level + (clean(value.rpartition(".")[2]) or "(the model)")
    return write(value, unit)


shown.FORMS["text"] = as_text
