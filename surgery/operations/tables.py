"""Constant tables that two models read in the same place: compared, never copied.

Which patch is how far from which, sines of positions, masks: buffers that no training changes and
that the code of a model makes. They are part of what it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from surgery import tree
from surgery.graph.align import Alignment
from surgery.graph.canonical import Canonical
from surgery.graph.distinctions import Distinction
from surgery.graph.regions import Region, regions

TABLE = "constant table"
# What differs between a table and its inverse.
ROUNDED = "rounding"
# How a number times its inverse is rounded.
_SINGLE, _DOUBLE = 1e-6, 1e-12


def tables_apart(
    alignment: Alignment, indexes: tuple[tree.Index, tree.Index]
) -> Iterator[Distinction]:
    """The tables that stand in the same place and are not the same.

    Args:
        alignment: of the graphs.
        indexes: the tensors of the models.

    Returns:
        For each, its addresses in both, and the shapes, or where the numbers differ most.
    """
    known = tuple(
        {e.address: e.tensor for e in index.tensors.values() if e.kind != "parameter"}
        for index in indexes
    )
    seen: set[tuple[str, str]] = set()
    for one, other in regions(alignment):
        mine, theirs = _read(alignment.one, one), _read(alignment.other, other)
        pairs = list(_paired([a for a in mine if a in known[0]], known[0], theirs, known[1]))
        for first, second in pairs:
            if (first, second) not in seen:
                seen.add((first, second))
                yield from _apart(first, second, known[0][first], known[1][second])


def remedy(found: Iterable[Distinction]) -> str:
    """How the recipient gets the donor's table, as code; empty where none has its shape."""
    for each in found:
        if each.name not in ("shape", ROUNDED):
            return (
                "tables are compared, not copied; recipient.get_buffer("
                f"{each.recipient!r}).copy_(donor.get_buffer({each.donor!r})) if they are to be "
                "the donor's"
            )
    return ""


def _read(side: Canonical, region: Region) -> list[str]:
    """The tables that are read in a region."""
    held = side.tensors
    sources = (n for n in region if n.role in ("buffer", "constant") and n.addresses)
    return [node.addresses[0] for node in sources if node.addresses[0] not in held]


def _paired(
    mine: list[str],
    ours: dict[str, torch.Tensor],
    theirs: list[str],
    other: dict[str, torch.Tensor],
) -> Iterator[tuple[str, str]]:
    """Tables of one size with each other, in order; then what is left, if it is as many."""
    rest, left = [each for each in theirs if each in other], []
    for first in mine:
        fitting = (e for e in rest if other[e].numel() == ours[first].numel())
        twin = next(fitting, None)
        if twin is None:
            left.append(first)
        else:
            rest.remove(twin)
            yield first, twin
    if len(left) == len(rest):
        yield from zip(left, rest, strict=True)


def _apart(
    donor: str, recipient: str, one: torch.Tensor, other: torch.Tensor
) -> Iterator[Distinction]:
    if one.dtype.is_floating_point != other.dtype.is_floating_point:
        # A mask of yes and no, and one of numbers that are added: no number is to be compared.
        return
    if one.numel() != other.numel():
        shapes = tuple(one.shape), tuple(other.shape)
        yield Distinction(donor, recipient, TABLE, "shape", *shapes)
        return
    if one.is_meta or other.is_meta or one.is_complex() or other.is_complex():
        return
    first, second = (each.detach().cpu().flatten().double() for each in (one, other))
    alike = (first == second) | (first.isnan() & second.isnan())
    if bool(alike.all()):
        return
    # Periods and frequencies say the same, up to how they were rounded.
    rounded = float((first * second - 1).abs().max())
    if rounded < _SINGLE:
        if rounded > _DOUBLE:
            told = "its inverse", f"the table, {rounded:.2g} apart by rounding,"
            yield Distinction(donor, recipient, TABLE, ROUNDED, *told)
        return
    gaps = torch.where(alike, 0.0, (first - second).abs()).nan_to_num(torch.inf)
    place = int(gaps.argmax())
    at = tuple(int(each) for each in torch.unravel_index(torch.tensor(place), other.shape))
    name = f"largest difference {float(gaps[place]):.3g} at {list(at)}"
    values = (f"{float(each[place]):.6g}" for each in (first, second))
    yield Distinction(donor, recipient, TABLE, name, *values)
