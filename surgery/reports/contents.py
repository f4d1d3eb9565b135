"""The report on what lies in a checkpoint, layers folded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from surgery.operations.recorded import KEY, Recorded, read_recorded
from surgery.reports.areas import chart_of_tensors
from surgery.reports.chart import Shade
from surgery.reports.report import Column, Fact, Report, Table, Value, describe
from surgery.weights.contents import Contents, Entry
from surgery.weights.folding import fold

_TENSORS = (
    Column("name", "tensor", "address"),
    Column("shape", "shape"),
    Column("dtype", "dtype"),
    Column("bytes", "memory", "bytes"),
    Column("aliases", "the same bytes as", presence="where any"),
)
_FOLDED = (
    Column("names", "tensors", "address"),
    Column("times", "times", "count"),
    Column("shape", "shape of each"),
    Column("dtype", "dtype"),
    Column("bytes", "memory", "bytes"),
)
_DTYPES = (
    Column("dtype", "dtype"),
    Column("tensors", "tensors", "count"),
    Column("elements", "elements", "count"),
    Column("bytes", "memory", "bytes"),
)
# What a file says of itself can be of any length.
_LONGEST = 400


@describe.register
def _(contents: Contents) -> Report:
    recorded = read_recorded(contents.metadata) or Recorded()
    elements = sum(math.prod(entry.shape) for _, entry in contents.once())
    return Report(
        "contents",
        "Checkpoint",
        facts=(
            Fact("origin", "from", contents.origin),
            Fact("format", "format", contents.format),
            Fact("chosen", "entry", contents.chosen, presence="where any"),
            Fact("target", "built by", recorded.target, presence="where any"),
            Fact("classes", "classes", recorded.classes, "list", "where any"),
            Fact("count", "tensors", len(contents.tensors), "count"),
            Fact("elements", "elements", elements, "count"),
            Fact("bytes", "memory", contents.nbytes, "bytes"),
        ),
        tables=(
            Table(
                "operations",
                "Operations that made it",
                (Column("operation", "operation"),),
                tuple((title,) for title in recorded.operations),
            ),
            Table("dtypes", "Memory by dtype", _DTYPES, tuple(_by_dtype(contents))),
            Table("folded", "Tensors, layers folded", _FOLDED, tuple(_folded(contents))),
            Table("tensors", "", _TENSORS, tuple(_tensors(contents)), presence="data"),
            Table(
                "metadata",
                "Metadata",
                (Column("key", "key"), Column("value", "value")),
                tuple((key, _value(key, value)) for key, value in contents.metadata.items()),
            ),
        ),
        notes=(*contents.notes, *filter(None, [recorded.malformed])),
        charts=(chart_of_tensors("tensors", "Tensors by memory", _sizes(contents)),),
    )


def _sizes(contents: Contents) -> Iterator[tuple[str, str, int, Shade]]:
    for name, entry in contents.once():
        real = entry.dtype.startswith(("float", "bfloat", "complex"))
        form = f"{entry.dtype}{list(entry.shape)}"
        yield name, form, entry.nbytes, "tensors" if real else "integers"


def _by_dtype(contents: Contents) -> Iterator[tuple[Value, ...]]:
    groups: dict[str, list[Entry]] = {}
    for _, entry in contents.once():
        groups.setdefault(entry.dtype, []).append(entry)
    for dtype, entries in groups.items():
        elements = sum(math.prod(entry.shape) for entry in entries)
        yield dtype, len(entries), elements, sum(entry.nbytes for entry in entries)


def _tensors(contents: Contents) -> Iterator[tuple[Value, ...]]:
    for name, entry in contents.tensors.items():
        yield name, entry.shape, entry.dtype, entry.nbytes, entry.aliases


def _folded(contents: Contents) -> list[tuple[Value, ...]]:
    """Lines for names that differ in the indices of layers alone, each of one shape and dtype."""
    alike: dict[tuple[tuple[int, ...], str, int], list[str]] = {}
    for name, entry in contents.tensors.items():
        alike.setdefault((entry.shape, entry.dtype, entry.nbytes), []).append(name)
    rows: list[tuple[list[tuple[int, str]], tuple[Value, ...]]] = []
    for (shape, dtype, nbytes), names in alike.items():
        for line in fold(names):
            first, times = (line, 1) if line in contents.tensors else _unfolded(line)
            row = (line, times, str(list(shape)), dtype, times * nbytes)
            rows.append((_natural(first), row))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _unfolded(line: str) -> tuple[str, int]:
    """The first name that a folded line stands for, and how many there are.

    Example:
        >>> _unfolded("layer{1,2}.{0..22}.weight")
        ('layer1.0.weight', 46)
    """
    ranges = re.findall(r"\{([^}]*)\}", line)
    ends = [[part.split("..") for part in each.split(",")] for each in ranges]
    times = math.prod(sum(int(e[-1]) - int(e[0]) + 1 for e in each) for each in ends)
    return re.sub(r"\{(\d+)[^}]*\}", r"\1", line), times


def _natural(name: str) -> list[tuple[int, str]]:
    """To sort by: layers in the order of their numbers, whatever the order of the file."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _value(key: str, value: str) -> str:
    if key == KEY:
        return f"the record of surgery.save, {len(value):,} characters"
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}... {len(value):,} characters"
