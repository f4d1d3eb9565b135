"""The report on an example: its arguments, in both modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from surgery.graph.example import Example
from surgery.graph.graph import Spec
from surgery.graph.structure import tensors
from surgery.reports.report import Column, Report, Table, Value, describe

_COLUMNS = (
    Column("mode", "mode"),
    Column("path", "argument"),
    Column("value", "value"),
    Column("shape", "", presence="data"),
    Column("dtype", "", presence="data"),
)


@describe.register
def _(example: Example) -> Report:
    lead = "" if example.args or example.kwargs else "forward is called without arguments."
    return Report("example", "Example", tables=(arguments_table(example),), lead=lead)


def arguments_table(example: Example | None) -> Table:
    """The arguments of forward: every tensor, and the type of whatever holds none.

    Args:
        example: the example, or None for no rows.
    """
    rows: list[tuple[Value, ...]] = []
    if example is not None and example.train is None:
        rows += _rows("any", example)
    elif example is not None:
        rows += [*_rows("eval", example), *_rows("train", example.in_mode(True))]
    return Table("arguments", "Arguments of forward", _COLUMNS, tuple(rows))


def _rows(mode: str, example: Example) -> Iterator[tuple[Value, ...]]:
    named: list[tuple[str, Any]] = [(f"args[{n}]", value) for n, value in enumerate(example.args)]
    named += [(f"kwargs[{name!r}]", value) for name, value in example.kwargs.items()]
    for name, value in named:
        found = list(tensors(value, name))
        for path, tensor in found:
            spec = Spec(tuple(tensor.shape), tensor.dtype)
            yield mode, path, str(spec), *spec_values(spec)
        if not found:
            brief = isinstance(value, bool | int | float | str | None)
            yield mode, name, repr(value) if brief else type(value).__name__, None, None


def spec_values(spec: Spec | None) -> tuple[Value, Value]:
    """Shape and dtype apart, for programs; None twice where there is no tensor."""
    if spec is None:
        return None, None
    return spec.shape, str(spec.dtype).removeprefix("torch.")
