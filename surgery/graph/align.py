"""Two graphs, one under the other: which cell of the one is which of the other.

Where both graphs are the same but for names, colours settle nearly everything; what they leave
open is settled by the operations between cells, then by order of execution. Where one graph is
deeper or has another head, the common part is found from the inputs on and from the outputs back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical, Cell, Stream
from surgery.graph.refine import (
    Colours,
    Palette,
    Sides,
    agreed,
    groups,
    kinds_of,
    refined,
    remembered,
    same_counts,
    seeds_of,
    sources,
    targets,
)
from surgery.graph.ties import settled
from surgery.graph.wording import gist, wording


@dataclass(frozen=True)
class Alignment:
    """Pairs of cells that stand in the same place.

    Attributes:
        one: the cells of the first graph.
        other: those of the second.
        pairs: numbers of cells, in order of execution in the first.
        complete: whether every cell of both graphs is in a pair.
        open: groups of cells between which only the order of execution decided.
        formed: inputs of the second graph, by node, that are the first one's numbers in a form of
            their own.
    """

    one: Canonical
    other: Canonical
    pairs: tuple[tuple[int, int], ...]
    complete: bool
    open: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    formed: frozenset[int] = frozenset()


def alignments(one: Canonical, other: Canonical, limit: int = 8) -> Iterator[Alignment]:
    """Align two graphs, the likeliest way first.

    Args:
        one: the cells of a graph.
        other: the cells of another.
        limit: how many ways to try at most where colours leave something open.

    Returns:
        Ways to align them: one where nothing is open, never none.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> from surgery.graph.reduce import canonical
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> side = canonical(surgery.record(model, torch.zeros(1, 3), train=False))
        >>> next(alignments(side, side)).pairs
        ((0, 0), (1, 1), (2, 2))
    """
    sides = (one, other)
    palette = Palette()
    seeds = seeds_of(sides, palette)
    colours = refined(sides, seeds, palette)
    found = _alike(sides, colours, palette, limit)
    if found is None:
        # Wider, the same is made of the same operations.
        found = _alike(sides, refined(sides, kinds_of(sides, palette), palette), palette, limit)
    yield from found or [_in_part(sides, seeds, colours, palette)]


def _alike(
    sides: Sides, colours: tuple[Colours, Colours], palette: Palette, limit: int
) -> Iterator[Alignment] | None:
    """Every way to lay two graphs of the same colours over each other; None where there is none."""
    if not same_counts(colours):
        return None
    for way in (_gists, passed, _wordings):
        if len(set(colours[0])) == len(colours[0]):
            break
        stricter = refined(sides, colours, palette, agreed(sides, colours, way))
        colours = stricter if same_counts(stricter) else colours
    ways = settled(sides, colours, remembered(_wordings), limit)
    first = next(ways, None)
    if first is None:
        return None
    every = itertools.chain([first], ways)
    return (Alignment(*sides, found.pairs, True, found.open) for found in every)


def passed(side: Canonical, stream: Stream) -> tuple[str, ...]:
    """The names of the operations between two cells."""
    return tuple(packet(side.graph.nodes[n].operation).rstrip("_") for n in stream.via)


def _gists(side: Canonical, stream: Stream) -> Hashable:
    return gist(side.graph.nodes[number] for number in stream.via)


def _wordings(side: Canonical, stream: Stream) -> Hashable:
    return wording(side.graph.nodes[number] for number in stream.via)


def _in_part(
    sides: Sides, seeds: tuple[Colours, Colours], colours: tuple[Colours, Colours], palette: Palette
) -> Alignment:
    """Align what two different graphs have in common."""
    found: dict[int, int] = {}
    taken: set[int] = set()
    by_order = []
    above = tuple(sources(s, c, palette) for s, c in zip(sides, seeds, strict=True))
    below = tuple(targets(s, c, palette) for s, c in zip(sides, seeds, strict=True))
    for known in (colours, _apart(sides, above, below), below):
        rest = (
            [-1 - n if n in found else c for n, c in enumerate(known[0])],
            [-1 - len(known[0]) - n if n in taken else c for n, c in enumerate(known[1])],
        )
        for ours, theirs in groups(rest):
            if len(ours) == len(theirs):
                by_order += [(tuple(ours), tuple(theirs))] if len(ours) > 1 else []
                found |= dict(zip(ours, theirs, strict=True))
                taken |= set(theirs)
        _spread(sides, seeds, found, taken)
    one, other = sides
    pairs = [pair for pair in sorted(found.items()) if not _resampled(sides, *pair)]
    return Alignment(one, other, tuple(pairs), False, tuple(by_order))


def _resampled(sides: Sides, one: int, two: int) -> bool:
    """Whether one of two convolutions steps where a pool steps in front of the other.

    They are two ways to make an image smaller, and not the same layer.
    """
    steps = [_steps(side, side.cells[n]) for side, n in zip(sides, (one, two), strict=True)]
    (own, pooled), (other, before) = steps
    return own != other and pooled != before and own * pooled == other * before


def _steps(side: Canonical, cell: Cell) -> tuple[int, int]:
    """How far a convolution steps by itself, and the pools on the way to it."""
    node, pooled = side.graph.nodes[cell.node], 1
    if "convolution" not in node.operation:
        return 1, 1
    for number in (number for stream in cell.streams for number in stream.via):
        pool = side.graph.nodes[number]
        if packet(pool.operation) in _POOLS:
            _, size, *rest = pool.arguments
            pooled *= math.prod(rest[0] if rest and rest[0] else size)
    return math.prod(node.arguments[3]), pooled


_POOLS = frozenset(f"{name}_pool{axes}d" for name in ("avg", "max") for axes in (1, 2, 3))


def _apart(
    sides: Sides, above: tuple[Colours, ...], below: tuple[Colours, ...]
) -> tuple[Colours, ...]:
    """Colours from above without those that end there, where from below another cell fits.

    Behind the common part of a deep graph and a deeper one stands the last layer of the one, and
    one more of many in the other. They look alike; what they lead to tells them apart.
    """
    ends: set[int] = set()
    for side, colours, others in zip(sides, above, below, strict=True):
        common = set(above[0]) & set(above[1])
        onward = {
            stream.cell
            for cell, colour in zip(side.cells, colours, strict=True)
            if colour in common
            for stream in cell.streams
        }
        wanted = set(below[0]) & set(below[1])
        ends |= {
            colours[number]
            for number, cell in enumerate(side.cells)
            if cell.slots and number not in onward and others[number] in wanted
        }
    # Below zero, each number once: they are like nothing else.
    return tuple(
        [-(side << 40) - n if c in ends else c for n, c in enumerate(colours)]
        for side, colours in enumerate(above, 1)
    )


def _spread(
    sides: Sides, seeds: tuple[Colours, Colours], found: dict[int, int], taken: set[int]
) -> None:
    """Pair what flows into pairs from the same place, and what pairs alone flow into."""
    one, other = sides
    pending = sorted(found.items(), reverse=True)
    while pending:
        a, b = pending.pop()
        cells = one.cells[a], other.cells[b]
        mine, theirs = ([stream.cell for stream in cell.streams] for cell in cells)
        if len(mine) != len(theirs):
            continue
        if not cells[0].ordered:
            mine = sorted((n for n in mine if n not in found), key=lambda n: seeds[0][n])
            theirs = sorted((n for n in theirs if n not in taken), key=lambda n: seeds[1][n])
            kinds = [seeds[0][n] for n in mine]
            if kinds != [seeds[1][n] for n in theirs] or len(set(kinds)) < len(kinds):
                continue
        for pair in zip(mine, theirs, strict=True):
            fits = seeds[0][pair[0]] == seeds[1][pair[1]]
            if fits and pair[0] not in found and pair[1] not in taken:
                found[pair[0]] = pair[1]
                taken.add(pair[1])
                pending.append(pair)
