"""Cells in the making: packed products are cut into parts, and chains of joins become one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from surgery.graph.canonical import UNORDERED, Canonical, Cell, End, Kind, Slot, Stream
from surgery.graph.graph import Graph, Spec
from surgery.graph.pieces import Piece, Rows, cut_segments, numbered

_ASSOCIATIVE = UNORDERED | {"cat"}


@dataclass(frozen=True, slots=True)
class Link:
    """A stream into a draft, and which of its source's features it carries; None for all."""

    stream: Stream
    rows: Rows | None = None


@dataclass(slots=True, eq=False)
class Draft:
    """A cell that may still get a bias, or be cut."""

    kind: Kind
    name: str
    node: int
    module: str
    shape: tuple[int, ...] = ()
    features: int = 0
    slots: dict[str, tuple[tuple[Piece, ...], tuple[int, ...]]] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)


def finished(
    graph: Graph, drafts: list[Draft], ends: list[tuple[str, Spec, Link | None]]
) -> Canonical:
    """Make cells of drafts.

    Args:
        graph: what the drafts were read from.
        drafts: in order; links go to earlier ones.
        ends: the outputs.
    """
    _splice(drafts, [link for _, _, link in ends if link is not None])
    used = _used(drafts, ends)
    asked: dict[int, dict[Rows | None, None]] = {}
    links = [link for number in used for link in drafts[number].links]
    links += [link for _, _, link in ends if link is not None]
    for link in links:
        asked.setdefault(link.stream.cell, {})[link.rows] = None
    cells: list[Cell] = []
    places: dict[tuple[int, Rows | None], int] = {}
    for number in used:
        draft = drafts[number]
        streams = tuple(_resolved(link, places) for link in draft.links)
        parts = _parts(draft, asked.get(number, {}))
        for readers, slots in parts:
            for rows in readers:
                places[number, rows] = len(cells)
            shape = slots[0].shape if len(parts) > 1 and slots else draft.shape
            cells.append(
                Cell(draft.kind, draft.name, shape, slots, streams, draft.node, draft.module)
            )
    found = tuple(
        End(path, spec, _resolved(link, places) if link is not None else None)
        for path, spec, link in ends
    )
    return Canonical(graph, tuple(cells), found)


def _resolved(link: Link, places: dict[tuple[int, Rows | None], int]) -> Stream:
    return Stream(places[link.stream.cell, link.rows], link.stream.via)


def _used(drafts: list[Draft], ends: Iterable[tuple[str, Spec, Link | None]]) -> list[int]:
    """The drafts that lead to an output, in order."""
    pending = [link.stream.cell for _, _, link in ends if link is not None]
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            pending += [link.stream.cell for link in drafts[number].links]
    return sorted(seen)


def _splice(drafts: list[Draft], ends: list[Link]) -> None:
    """Let a join that feeds one other of its sort alone become part of it."""
    readers: dict[int, int] = {}
    for link in (*ends, *(link for draft in drafts for link in draft.links)):
        readers[link.stream.cell] = readers.get(link.stream.cell, 0) + 1
    for draft in drafts:
        if draft.kind != "join" or draft.name not in _ASSOCIATIVE:
            continue
        links: list[Link] = []
        for link in draft.links:
            other = drafts[link.stream.cell]
            alike = other.kind == "join" and other.name == draft.name
            if alike and not link.stream.via and readers[link.stream.cell] == 1:
                links += other.links
            else:
                links.append(link)
        draft.links = links


def _parts(
    draft: Draft, asked: dict[Rows | None, None]
) -> list[tuple[tuple[Rows | None, ...], tuple[Slot, ...]]]:
    """The parts that others read of a product, each with what is read of it; or the whole."""
    rows = [each for each in asked if each is not None]
    if draft.kind == "product" and rows and None not in asked:
        parts = _widest(rows, draft.features)
        cut = {first: _cut(draft, first) for first in parts}
        whole = {first: slots for first, slots in cut.items() if slots is not None}
        if len(whole) == len(parts) > 1:
            return [((*parts[first],), whole[first]) for first in sorted(parts, key=_first)]
    return [((*asked, None), _whole(draft))]


def _first(rows: Rows) -> int:
    return rows[0]


def _widest(asked: list[Rows], features: int) -> dict[Rows, list[Rows]]:
    """The widest rows that are asked for, with those that lie within; none where they cross.

    Queries that are rotated by halves are read whole where some positions are not rotated.
    """
    found: dict[Rows, list[Rows]] = {}
    members: dict[Rows, set[int]] = {}
    for rows in sorted(asked, key=lambda each: (-len(numbered(each)), each)):
        own = set(numbered(rows))
        around = [other for other, theirs in members.items() if own & theirs]
        if not around:
            found[rows], members[rows] = [rows], own
        elif own <= members[around[0]]:
            found[around[0]].append(rows)
        else:
            return {}
    return found if sum(map(len, members.values())) == features else {}


def _cut(draft: Draft, rows: Rows) -> tuple[Slot, ...] | None:
    count = len(numbered(rows))
    found = []
    for role, (segments, shape) in draft.slots.items():
        pieces = cut_segments(segments, rows)
        if pieces is None:
            return None
        found.append(Slot(role, pieces[0], (count, *shape[1:])))
    return tuple(found)


def _whole(draft: Draft) -> tuple[Slot, ...]:
    found = []
    for role, (segments, shape) in draft.slots.items():
        if len(segments) == 1:
            found.append(Slot(role, segments[0], shape))
            continue
        found += [
            Slot(f"{role} {place}", piece, piece.shape) for place, piece in enumerate(segments)
        ]
    return tuple(found)
