"""The report on a source of weights: what lies in it, with nothing read."""

from __future__ import annotations

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
    )
