"""Blocks that repeat, folded to the first of them: ``layer3.1`` to ``layer3.35``, 35 times."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from surgery import tree
from surgery.pictures.blocks import Block, Edge, Group, Sketch

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Unit:
    """The blocks of one module that may be one of several alike."""

    address: str
    members: tuple[int, ...]


def folded(whole: Sketch, levels: int) -> Sketch:
    """Fold what repeats, and group what lies in one module.

    Modules repeat where they have consecutive numbers, run one right after the other, do the
    same on tensors of the same shapes with parameters of the same shapes and marks, and each
    reads what the one before it makes, or what all of them read.

    Args:
        whole: as ``blocks.sketch`` makes it.
        levels: how deep addresses go.

    Returns:
        The sketch with the first of each series alone, and what follows the last joined to it.
    """
    found = whole
    for level in range(1, levels + 1):
        found = _fold_level(found, level)
    return replace(found, groups=_grouped(found))


def _fold_level(whole: Sketch, level: int) -> Sketch:
    units = list(_units(whole, level))
    edges = _Edges(whole)
    place = 0
    kept: list[Sequence[_Unit]] = []
    while place < len(units):
        end = place + 1
        while end < len(units) and _follows(whole, edges, units, place, end):
            end += 1
        kept.append(units[place:end])
        place = end
    series = [run for run in kept if len(run) > 1]
    return _merged(whole, series) if series else whole


class _Edges:
    """The edges of a sketch by where they begin and end."""

    def __init__(self, whole: Sketch) -> None:
        self.into: dict[int, list[Edge]] = {}
        self.out: dict[int, list[Edge]] = {}
        for edge in whole.edges:
            self.into.setdefault(edge.target, []).append(edge)
            self.out.setdefault(edge.source, []).append(edge)


def _units(whole: Sketch, level: int) -> Iterator[_Unit]:
    """Stretches of blocks that lie in one module of this level."""
    address, members = "", list[int]()
    for place, block in enumerate(whole.blocks):
        parts = block.address.split(".")
        inner = block.kind in ("module", "operations") and len(parts) >= level and block.address
        here = ".".join(parts[:level]) if inner else ""
        if members and here != address:
            yield _Unit(address, tuple(members))
            members = []
        address = here
        if here:
            members.append(place)
    if members:
        yield _Unit(address, tuple(members))


def _follows(whole: Sketch, edges: _Edges, units: Sequence[_Unit], start: int, place: int) -> bool:
    """Whether a unit is the next of the series that began at ``start``."""
    before, here = units[place - 1], units[place]
    if before.members[-1] + 1 != here.members[0] or not _is_next(before.address, here.address):
        return False
    if len(before.members) != len(here.members):
        return False
    if any(
        _nature(whole.blocks[left], before.address) != _nature(whole.blocks[right], here.address)
        for left, right in zip(before.members, here.members, strict=True)
    ):
        return False
    if any(
        edge.target not in {*before.members, *here.members}
        for member in before.members
        for edge in edges.out.get(member, ())
    ):
        return False
    arriving = _arriving(edges, here, before)
    if place - 1 == start:
        return _alike(_arriving(edges, before, None), arriving)
    return arriving == _arriving(edges, before, units[place - 2])


def _is_next(left: str, right: str) -> bool:
    (owner, name), (other, following) = tree.split(left), tree.split(right)
    first, second = _NUMBERED.fullmatch(name), _NUMBERED.fullmatch(following)
    return (
        owner == other
        and first is not None
        and second is not None
        and first[1] == second[1]
        and int(first[2]) + 1 == int(second[2])
    )


def _nature(block: Block, unit: str) -> tuple[object, ...]:
    """What two blocks have in common that can stand for each other."""
    names = tuple(
        tuple(address.removeprefix(unit) for address in addresses) for addresses in block.parameters
    )
    own = block.address.removeprefix(unit)
    made = (block.kind, own, block.operations, block.elements, block.made, block.marks)
    return (*made, block.repeats, block.call[1], names)


# Of an edge: where it arrives in the unit, where it comes from, and what it carries.
_Arrival: TypeAlias = tuple[int, str, int, tuple[object, ...]]


def _arriving(edges: _Edges, unit: _Unit, before: _Unit | None) -> frozenset[_Arrival]:
    found = set()
    for place, member in enumerate(unit.members):
        for edge in edges.into.get(member, ()):
            origin, number = "outside", edge.source
            if edge.source in unit.members:
                origin, number = "inside", unit.members.index(edge.source)
            elif before is not None and edge.source in before.members:
                origin, number = "before", before.members.index(edge.source)
            found.add((place, origin, number, edge.specs))
    return frozenset(found)


def _alike(first: frozenset[_Arrival], second: frozenset[_Arrival]) -> bool:
    """Whether the first of a series gets from elsewhere what the second gets from the first."""
    constant = {arrival for arrival in second if arrival[1] != "before"}
    if not constant <= first:
        return False
    passed = [(place, specs) for place, origin, _, specs in second if origin == "before"]
    entering = [(place, specs) for place, _, _, specs in first - constant]
    return len(passed) == len(entering) and set(passed) == set(entering)


def _merged(whole: Sketch, series: Sequence[Sequence[_Unit]]) -> Sketch:
    stands: dict[int, int] = {}
    changed: dict[int, Block] = {}
    inner: set[int] = set()
    for run in series:
        for place, member in enumerate(run[0].members):
            same = [unit.members[place] for unit in run]
            changed[member] = _together([whole.blocks[each] for each in same])
            stands |= dict.fromkeys(same, member)
            inner.update(same[1:])
    kept = [place for place in range(len(whole.blocks)) if place not in inner]
    number = {place: index for index, place in enumerate(kept)}
    edges: dict[tuple[int, int], Edge] = {}
    for edge in whole.edges:
        # What runs between the units of a series, or into any but the first, is not drawn.
        if edge.target in inner:
            continue
        source = number[stands.get(edge.source, edge.source)]
        target = number[edge.target]
        edges.setdefault((source, target), Edge(source, target, edge.specs))
    blocks = tuple(changed.get(place, whole.blocks[place]) for place in kept)
    return Sketch(blocks, tuple(edges[ends] for ends in sorted(edges)))


def _together(same: Sequence[Block]) -> Block:
    """The first of several alike, for all of them."""
    parameters = tuple(dict.fromkeys(found for block in same for found in block.parameters))
    return replace(
        same[0],
        parameters=parameters,
        elements=sum(block.elements for block in same),
        flops=sum(block.flops for block in same),
        repeats=same[0].repeats * len(same),
        last=same[-1].last or same[-1].address,
    )


def _grouped(whole: Sketch) -> tuple[Group, ...]:
    """The modules that several blocks lie in, outer ones first, none twice for the same blocks."""
    members: dict[str, list[int]] = {}
    for place, block in enumerate(whole.blocks):
        if block.kind in ("module", "operations"):
            parts = block.address.split(".") if block.address else []
            ends = len(parts) + (block.kind == "operations")
            for length in range(1, ends):
                members.setdefault(".".join(parts[:length]), []).append(place)
    # Of modules around the same blocks the innermost says most.
    same = {tuple(found): address for address, found in members.items() if len(found) > 1}
    ranges = _ranges(whole.blocks)
    return tuple(
        Group(address, found, *ranges.get(address, (1, "")))
        for found, address in sorted(same.items(), key=lambda item: (-len(item[0]), item[0]))
    )


def _ranges(blocks: Sequence[Block]) -> Mapping[str, tuple[int, str]]:
    """For the modules that stand for several: how many, and the last of them."""
    found: dict[str, tuple[int, str]] = {}
    for block in blocks:
        if not block.last or block.kind == "output":
            continue
        parts, last = block.address.split("."), block.last.split(".")
        for length in range(1, len(parts) + 1):
            if parts[:length] != last[:length]:
                found[".".join(parts[:length])] = (block.repeats, ".".join(last[:length]))
                break
    return found
