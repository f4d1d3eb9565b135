"""The report on a correspondence: which tensor of one model is which of another, and the rest."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.graph.pieces import Piece
from surgery.operations.correspondence import Correspondence, Form, Leftover, TensorPair
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

# Empty where the one side has zeros in place of a tensor of the other.
_PAIRS = (
    Column("donor", "in the donor"),
    Column("recipient", "in the recipient"),
    Column("how", "how"),
    Column("role", "role", "label"),
    Column("theirs", "", presence="data"),
    Column("ours", "", presence="data"),
)
# With these, `surgery.read_correspondence` makes the value again.
_UNSETTLED = tuple(column for column in _PAIRS if column.key != "how")
_TENSORS = (
    Column("address", ""),
    Column("shape", ""),
    Column("names", ""),
    Column("used", ""),
    Column("table", ""),
)
_LEFT = (
    Column("side", "of the", "label"),
    Column("address", "tensor", "address"),
    Column("shape", "shape"),
    Column("reason", "why"),
)
_DIFFERENCES = (
    Column("recipient", "in the recipient", "address"),
    Column("operation", "operation"),
    Column("name", "setting"),
    Column("donor_value", "of the donor"),
    Column("recipient_value", "of the recipient"),
    Column("donor", "", presence="data"),
)


@describe.register
def _(found: Correspondence) -> Report:
    sides = (("donor", found.donor_only), ("recipient", found.recipient_only))
    left = [(side, each) for side, every in sides for each in every]
    return Report(
        "correspondence",
        "Correspondence",
        (
            Fact("donor", "donor", found.donor.title),
            Fact("recipient", "recipient", found.recipient.title),
            Fact("filled", "tensors of the recipient, filled", len(found.filled), "count"),
            Fact("coverage", "coverage", found.coverage, "share"),
            Fact("complete", "all operations aligned", found.complete, "answer"),
            Fact("ambiguous", "told apart by order alone", found.ambiguous, "count", "where any"),
        ),
        (
            Table("pairs", "What belongs where", _PAIRS, tuple(map(_pair, _settled(found)))),
            Table("unsettled", "", _UNSETTLED, tuple(_unsettled(found)), presence="data"),
            Table("left", "Without a counterpart", _LEFT, tuple(_left(*each) for each in left)),
            Table(
                "differences",
                "What operations differ in",
                _DIFFERENCES,
                tuple(
                    (d.recipient, d.operation, d.name, str(d.theirs), str(d.ours), d.donor)
                    for d in found.differences
                ),
            ),
            *(
                Table(f"{side}_tensors", "", _TENSORS, tuple(_tensors(form)), presence="data")
                for side, form in (("donor", found.donor), ("recipient", found.recipient))
            ),
        ),
        tuple(_notes(found)),
        _lead(found),
    )


def _lead(found: Correspondence) -> str:
    """What it comes to."""
    known = len(found.recipient.shapes) - len(found.recipient.constants)
    said = f"{len(found.filled)} of {known} tensors of the recipient get their values"
    left = len(found.donor_only)
    said += f", and {left} of the donor have no place." if left else "."
    if found.differences:
        return f"{said} Layers differ in {len(found.differences)} settings besides."
    return said


def _settled(found: Correspondence) -> Iterator[tuple[TensorPair, Correspondence]]:
    return ((pair, found) for pairs in found.parts.values() for pair in pairs)


def _pair(each: tuple[TensorPair, Correspondence]) -> tuple[Value, ...]:
    pair, found = each
    return (
        pair.donor,
        pair.recipient,
        _how(pair, found),
        pair.role,
        _place(pair.theirs),
        _place(pair.ours),
    )


def _unsettled(found: Correspondence) -> Iterator[tuple[Value, ...]]:
    """Pairs that fill no tensor of the recipient whole; the way back may need them."""
    for pair in found.pairs:
        if pair not in found.parts.get(pair.recipient, ()):
            yield pair.donor, pair.recipient, pair.role, _place(pair.theirs), _place(pair.ours)


def _tensors(form: Form) -> Iterator[tuple[Value, ...]]:
    names: dict[str, list[str]] = {}
    for name, first in form.aliases.items():
        names.setdefault(first, []).append(name)
    for address, shape in form.shapes.items():
        known = tuple(names.get(address, ()))
        yield address, shape, known, form.used.get(address), address in form.constants


def _how(pair: TensorPair, found: Correspondence) -> str:
    if not pair.donor:
        return "zeros"
    if pair.recipient in found.straight:
        return "as it is"
    cuts = [_cut(pair.theirs, found.donor), _cut(pair.ours, found.recipient)]
    if cuts == ["", ""]:
        return "reshaped"
    return " -> ".join(cut or "all" for cut in cuts)


def _cut(piece: Piece, form: Form) -> str:
    """Which part of its tensor a piece is, in words; empty for all of it."""
    shape = form.shapes[piece.address]
    if piece.is_whole(shape):
        return ""
    inner = 1
    for size in shape[1:]:
        inner *= size
    first, rest = divmod(piece.offset, inner)
    if not rest and piece.numel % inner == 0 and piece.shape[1:] == shape[1:]:
        return f"rows {first} to {first + piece.numel // inner}"
    return "transposed" if sorted(piece.shape) == sorted(shape) else "a part"


def _place(piece: Piece) -> Value:
    return (piece.offset, piece.shape, piece.stride)


def _left(side: str, each: Leftover) -> tuple[Value, ...]:
    return side, each.address, str(list(each.shape)), each.reason


def _notes(found: Correspondence) -> Iterator[str]:
    yield (
        "this is what the graphs say, and no output was compared: "
        "surgery.transplant(match='graph') proves it before it writes anything"
    )
    if found.ambiguous:
        yield (
            "some operations look the same from everywhere; surgery.transplant(match='graph') "
            "tries them both ways and lets the output decide"
        )
    for side, form in (("donor", found.donor), ("recipient", found.recipient)):
        if form.constants:
            count = len(form.constants)
            yield f"{count} buffers of the {side} are tables and no state: they stay as they are"
