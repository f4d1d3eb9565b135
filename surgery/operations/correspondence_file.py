"""A correspondence from the JSON of its report: what one run found, for all that come after it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from surgery.errors import CorruptFileError, WeightsError
from surgery.graph.distinctions import Distinction
from surgery.graph.pieces import Piece
from surgery.operations.correspondence import Correspondence, Form, TensorPair
from surgery.weights.brief import brief
from surgery.weights.header import RepeatedError, unrepeated

SCHEMA = "surgery/correspondence/1"
_FIX = "surgery align DONOR RECIPIENT --json > found.json"
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
        raise _broken(name, "this is no JSON", "JSON of a correspondence", error) from error
    said = content.get("schema") if isinstance(content, dict) else None
    if said != SCHEMA:
        found = brief(content) if said is None else brief(said)
        raise _broken(name, "this is no correspondence", f"an object with schema {SCHEMA!r}", found)
    return _checked(name, content)


def _checked(name: str, content: _Content) -> Correspondence:
    try:
        found = _correspondence(content)
        for pair in found.pairs:
            _check(found.donor, pair.theirs, pair.ours)
            _check(found.recipient, pair.ours, pair.theirs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        lacks = isinstance(error, KeyError)
        said = f"no {error}" if lacks else str(error)
        what = "this correspondence is malformed, or of an earlier version"
        raise _broken(name, what, f"all that {SCHEMA!r} has", said) from error
    return found


def _broken(name: str, what: str, expected: str, found: object) -> CorruptFileError:
    return CorruptFileError(
        what, where=name, expected=expected, found=brief(str(found)).strip("'\""), fix=_FIX
    )


def _correspondence(content: _Content) -> Correspondence:
    pairs = [*content["pairs"], *content["unsettled"]]
    return Correspondence(
        _form(content, "donor"),
        _form(content, "recipient"),
        tuple(map(_pair, pairs)),
        (_reasons(content, "donor"), _reasons(content, "recipient")),
        tuple(
            Distinction(
                *(_text(each[key]) for key in ("donor", "recipient", "operation", "name")),
                _text(each["donor_value"]),
                _text(each["recipient_value"]),
            )
            for each in content["differences"]
        ),
        _whole(content["ambiguous"]),
        content["complete"] is True,
    )


def _form(content: _Content, side: str) -> Form:
    rows = content[f"{side}_tensors"]
    return Form(
        _text(content[side]),
        {_text(row["address"]): _sizes(row["shape"]) for row in rows},
        {_text(name): row["address"] for row in rows for name in row["names"]},
        {row["address"]: _whole(row["used"]) for row in rows if row["used"] is not None},
        tuple(row["address"] for row in rows if row["table"] is True),
    )


def _pair(row: _Content) -> TensorPair:
    donor, recipient = _text(row["donor"]), _text(row["recipient"])
    pieces = (_piece(donor, row["theirs"]), _piece(recipient, row["ours"]))
    return TensorPair(donor, recipient, *pieces, _text(row["role"]))


def _piece(address: str, place: Any) -> Piece:
    offset, shape, stride = place
    piece = Piece(address, _sizes(shape), _sizes(stride), _whole(offset))
    if len(piece.shape) != len(piece.stride):
        raise ValueError(f"{brief(place)} for a part of {brief(address)}")
    return piece


def _check(form: Form, piece: Piece, other: Piece) -> None:
    """Refuse a part that is not inside its tensor, or not as large as what it is paired with."""
    if not piece.address:
        return
    last = piece.offset + sum(
        (size - 1) * step for size, step in zip(piece.shape, piece.stride, strict=True)
    )
    room = math.prod(form.shapes[piece.address])
    if piece.numel != other.numel or (piece.numel and last >= room):
        raise ValueError(f"a part of {piece.address} that is not inside it: {brief(piece.shape)}")


def _reasons(content: _Content, side: str) -> dict[str, str]:
    left = (each for each in content["left"] if each["side"] == side)
    return {_text(each["address"]): _text(each["reason"]) for each in left}


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(map(_whole, value))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{brief(value)} for a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{brief(value)} for a text")
    return value
