"""A correspondence from the JSON of its report: what one run found, for all that come after it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from surgery.errors import CorruptFileError, WeightsError
from surgery.graph.distinctions import Distinction
from surgery.graph.pieces import Piece
from surgery.operations.correspondence import Correspondence, Form, TensorPair
from surgery.weights.brief import brief
from surgery.weights.header import RepeatedError, unrepeated
from surgery.weights.verdicts import printable

SCHEMA = "surgery/correspondence/1"
_FIX = "surgery align DONOR RECIPIENT --json > found.json"
_LONGEST = 80
_Content: TypeAlias = Mapping[str, Any]


def read_correspondence(path: str | os.PathLike[str]) -> Correspondence:
    """Read what ``surgery.align`` found from a file of JSON.

    Args:
        path: what ``surgery align --json`` or ``surgery.report(found, "json")`` gave.

    Returns:
        The correspondence. What operations differ in is text in it; all else is as it was.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
        CorruptFileError: it holds something else.

    Example:
        >>> import tempfile, torch, surgery
        >>> from pathlib import Path
        >>> from torch import nn
        >>> one, other = nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)
        >>> found = surgery.align(one, other, example=torch.zeros(1, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "found.json")
        ...     _ = file.write_text(surgery.report(found, "json"))
        ...     surgery.read_correspondence(file) == found
        True
    """
    name = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(
            "this file of a correspondence cannot be read",
            where=name,
            expected="a file of JSON",
            found=error.strerror or str(error),
            fix=_FIX,
        ) from error
    try:
        content = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unrepeated)
    except (RepeatedError, ValueError, RecursionError) as error:
        said = printable(str(error))[:_LONGEST]
        raise _refused(name, "this is no JSON", "JSON of a correspondence", said) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        found = brief(content if schema is None else schema)
        what = "this is no correspondence"
        raise _refused(name, what, f"an object with schema {SCHEMA!r}", found)
    return _checked(name, content)


def _checked(name: str, content: _Content) -> Correspondence:
    reader = _Reader(name)
    try:
        found = reader.correspondence(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise reader.broken(said) from error
    for pair in found.pairs:
        reader.check(found.donor, pair.theirs, pair.ours)
        reader.check(found.recipient, pair.ours, pair.theirs)
    return found


def _refused(name: str, what: str, expected: str, found: str) -> CorruptFileError:
    return CorruptFileError(what, where=name, expected=expected, found=found, fix=_FIX)


@dataclass(frozen=True)
class _Reader:
    """Takes JSON apart that may hold anything."""

    name: str

    def broken(self, found: str) -> CorruptFileError:
        what = "this correspondence is malformed, or of an earlier version"
        return _refused(self.name, what, f"all that {SCHEMA!r} has", printable(found)[:_LONGEST])

    def correspondence(self, content: _Content) -> Correspondence:
        return Correspondence(
            self.form(content, "donor"),
            self.form(content, "recipient"),
            tuple(map(self.pair, [*content["pairs"], *content["unsettled"]])),
            (self.reasons(content, "donor"), self.reasons(content, "recipient")),
            tuple(map(self.distinction, content["differences"])),
            self.whole(content["ambiguous"]),
            content["complete"] is True,
        )

    def form(self, content: _Content, side: str) -> Form:
        rows = content[f"{side}_tensors"]
        return Form(
            self.text(content[side]),
            {self.text(row["address"]): self.sizes(row["shape"]) for row in rows},
            {self.text(name): row["address"] for row in rows for name in row["names"]},
            {row["address"]: self.whole(row["used"]) for row in rows if row["used"] is not None},
            tuple(row["address"] for row in rows if row["table"] is True),
        )

    def pair(self, row: _Content) -> TensorPair:
        donor, recipient = self.text(row["donor"]), self.text(row["recipient"])
        pieces = (self.piece(donor, row["theirs"]), self.piece(recipient, row["ours"]))
        return TensorPair(donor, recipient, *pieces, self.text(row["role"]))

    def piece(self, address: str, place: Any) -> Piece:
        offset, shape, stride = place
        piece = Piece(address, self.sizes(shape), self.sizes(stride), self.whole(offset))
        if len(piece.shape) != len(piece.stride):
            raise self.broken(f"{brief(place)} for a part of {address}")
        return piece

    def check(self, form: Form, piece: Piece, other: Piece) -> None:
        """Refuse a part that is not inside its tensor, or not as large as its counterpart."""
        if not piece.address:
            return
        shape = form.shapes.get(piece.address)
        if shape is None:
            raise self.broken(f"no tensor {piece.address}")
        steps = zip(piece.shape, piece.stride, strict=True)
        last = piece.offset + sum((size - 1) * step for size, step in steps)
        if piece.numel != other.numel or (piece.numel and last >= math.prod(shape)):
            raise self.broken(f"{brief(piece.shape)} for a part of {piece.address}")

    def distinction(self, row: _Content) -> Distinction:
        keys = ("donor", "recipient", "operation", "name", "donor_value", "recipient_value")
        return Distinction(*(self.text(row[key]) for key in keys))

    def reasons(self, content: _Content, side: str) -> dict[str, str]:
        left = (each for each in content["left"] if each["side"] == side)
        return {self.text(each["address"]): self.text(each["reason"]) for each in left}

    def sizes(self, value: Any) -> tuple[int, ...]:
        return tuple(map(self.whole, value))

    def whole(self, value: Any) -> int:
        if type(value) is not int or value < 0:
            raise self.broken(f"{brief(value)} for a number")
        return value

    def text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.broken(f"{brief(value)} for a text")
        return value
