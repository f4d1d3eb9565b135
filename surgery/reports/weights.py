"""The report on a source of weights: what lies in it, with nothing read."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.reports.areas import chart_of_tensors
from surgery.reports.chart import Shade
from surgery.reports.report import Column, Fact, Report, Table, describe
from surgery.weights.value import Weights

_TENSORS = (
    Column("name", "tensor", "address"),
    Column("shape", "shape"),
    Column("dtype", "dtype"),
    Column("bytes", "memory", "bytes"),
    Column("aliases", "the same bytes as", presence="where any"),
)


@describe.register
def _(weights: Weights) -> Report:
    return Report(
        "weights",
        "Weights",
        facts=(
            Fact("origin", "from", weights.origin),
            Fact("format", "format", weights.format),
            Fact("chosen", "entry", weights.chosen, presence="where any"),
            Fact("count", "tensors", len(weights.tensors), "count"),
            Fact("bytes", "memory", weights.nbytes, "bytes"),
        ),
        tables=(
            Table(
                "tensors",
                "Tensors",
                _TENSORS,
                tuple(
                    (
                        name,
                        str(list(info.shape)),
                        str(info.dtype).removeprefix("torch."),
                        info.nbytes,
                        info.aliases,
                    )
                    for name, info in weights.tensors.items()
                ),
            ),
            Table(
                "metadata",
                "Metadata",
                (Column("key", "key"), Column("value", "value")),
                tuple(weights.metadata.items()),
                presence="data",
            ),
        ),
        notes=weights.notes,
        charts=(chart_of_tensors("tensors", "Tensors by memory", _areas(weights)),),
    )


def _areas(weights: Weights) -> Iterator[tuple[str, str, int, Shade]]:
    """Tensors to draw, the bytes of aliases once."""
    seen: set[str] = set()
    for name, info in weights.tensors.items():
        floating = info.dtype.is_floating_point or info.dtype.is_complex
        form = f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
        yield name, form, 0 if name in seen else info.nbytes, "tensors" if floating else "integers"
        seen.update(info.aliases)
