"""The reports on heads: all of a model, and one alone."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.heads import Head, HeadOutput, Heads
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

_HEADS = (
    Column("address", "head", "address"),
    Column("kind", "kind"),
    Column("in_features", "in_features", "count"),
    Column("num_classes", "num_classes", "count"),
    Column("factor", "each", "count", "data"),
    Column("role", "role", "label"),
    Column("follows", "follows", "address", "data"),
    Column("background", "background", "text", "data"),
    Column("corroborated", "corroborated", "answer", "data"),
    Column("tied_to", "tied to", "address", "where any"),
    Column("addresses", "", "address", "data"),
)
_OUTPUTS = (
    Column("head", "head", "address"),
    Column("path", "output"),
    Column("axis", "class axis", "count"),
    Column("size", "size", "count"),
    Column("modes", "modes", "list"),
)
_EVIDENCE = (
    Column("head", "head", "address"),
    Column("source", "from"),
    Column("says", "evidence"),
)


@describe.register
def _(heads: Heads) -> Report:
    number = f"{len(heads)} head" if len(heads) == 1 else f"{len(heads)} heads"
    return Report(
        "heads",
        number if heads else "No head",
        facts=(Fact("ending", "", heads.ending, presence="data"),),
        tables=(
            Table("heads", "Where classes are made", _HEADS, tuple(map(_values, heads))),
            *_details(heads),
        ),
        notes=_notes(heads),
        lead="" if heads else f"{heads.ending}.",
    )


@describe.register
def _(head: Head) -> Report:
    return Report(
        "head",
        "Head",
        facts=tuple(
            Fact(column.key, column.label or column.key, value, column.unit, column.presence)
            for column, value in zip(_HEADS, _values(head), strict=True)
        ),
        tables=_details((head,)),
        notes=_notes((head,)),
    )


def _values(head: Head) -> tuple[Value, ...]:
    return tuple(getattr(head, column.key) for column in _HEADS)


def _details(heads: Sequence[Head]) -> tuple[Table, ...]:
    outputs = [(head, output) for head in heads for output in head.outputs]
    evidence = [(head, item) for head in heads for item in head.evidence]
    weights = [(head.address, addresses) for head in heads for addresses in head.weights]
    return (
        Table("outputs", "Outputs", _OUTPUTS, tuple(_output(*pair) for pair in outputs)),
        Table(
            "evidence",
            "Why",
            _EVIDENCE,
            tuple((head.address, item.source, item.says) for head, item in evidence),
        ),
        Table(
            "weights",
            "",
            (Column("head", "", "address"), Column("addresses", "", "address")),
            tuple(weights),
            presence="data",
        ),
    )


def _output(head: Head, output: HeadOutput) -> tuple[Value, ...]:
    return head.address, output.path, output.axis, output.size, output.modes


def _notes(heads: Sequence[Head]) -> tuple[str, ...]:
    bare = [head.address or "(the model)" for head in heads if not head.corroborated]
    if not bare:
        return ()
    return (
        f"nothing but the graph says that classes are made at {', '.join(bare)}: no family, and "
        "no attribute such as num_classes with that number",
    )
