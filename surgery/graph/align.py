"""Two graphs, one under the other: which cell of the one is which of the other.

Where both graphs are the same but for names, colours settle nearly everything; what they leave
open is settled by the operations between cells, then by order of execution. Where one graph is
deeper or has another head, the common part is found from the inputs on and from the outputs back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical, Stream
from surgery.graph.refine import (
    Colours,
    Palette,
    Sides,
    groups,
    refined,
    same_counts,
    seeds_of,
    sources,
    targets,
)


@dataclass(frozen=True)
class Alignment:
    """Pairs of cells that stand in the same place.

    Attributes:
        one: the cells of the first graph.
        other: those of the second.
        pairs: numbers of cells, in order of execution in the first.
        complete: whether every cell of both graphs is in a pair.
        open: groups of cells between which only the order of execution decided.
    """

    one: Canonical
    other: Canonical
    pairs: tuple[tuple[int, int], ...]
    complete: bool
    open: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


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
    if not same_counts(colours):
        yield _in_part(sides, seeds, colours, palette)
        return
    stricter = refined(sides, colours, palette, passed)
    if same_counts(stricter):
        colours = stricter
    unsettled = tuple((tuple(a), tuple(b)) for a, b in groups(colours) if len(a) > 1)
    for count, settled in enumerate(_settled(sides, colours, palette)):
        if count == limit:
            return
        pairs = sorted((a[0], b[0]) for a, b in groups(settled))
        yield Alignment(one, other, tuple(pairs), True, unsettled)


def passed(side: Canonical, stream: Stream) -> tuple[str, ...]:
    """The names of the operations between two cells."""
    return tuple(packet(side.graph.nodes[n].operation).rstrip("_") for n in stream.via)


def _settled(
    sides: Sides, colours: tuple[Colours, Colours], palette: Palette
) -> Iterator[tuple[Colours, Colours]]:
    """Every way to tell cells of one colour apart, those in order of execution first."""
    tie = next(((a, b) for a, b in groups(colours) if len(a) > 1), None)
    if tie is None:
        yield colours
        return
    (first, *_), candidates = tie
    for candidate in candidates:
        fresh = palette.number(("settled", len(palette.known)))
        one, other = (list(each) for each in colours)
        one[first] = other[candidate] = fresh
        again = refined(sides, (one, other), palette)
        if same_counts(again):
            yield from _settled(sides, again, palette)


def _in_part(
    sides: Sides, seeds: tuple[Colours, Colours], colours: tuple[Colours, Colours], palette: Palette
) -> Alignment:
    """Align what two different graphs have in common."""
    found: dict[int, int] = {}
    taken: set[int] = set()
    above = tuple(sources(s, c, palette) for s, c in zip(sides, seeds, strict=True))
    below = tuple(targets(s, c, palette) for s, c in zip(sides, seeds, strict=True))
    for known in (colours, above, below):
        rest = (
            [-1 - n if n in found else c for n, c in enumerate(known[0])],
            [-1 - len(known[0]) - n if n in taken else c for n, c in enumerate(known[1])],
        )
        for ours, theirs in groups(rest):
            if len(ours) == len(theirs):
                found |= dict(zip(ours, theirs, strict=True))
                taken |= set(theirs)
        _spread(sides, seeds, found, taken)
    one, other = sides
    return Alignment(one, other, tuple(sorted(found.items())), False)


def _spread(
    sides: Sides, seeds: tuple[Colours, Colours], found: dict[int, int], taken: set[int]
) -> None:
    """Pair what flows into pairs from the same place, and what pairs alone flow into."""
    one, other = sides
    pending = sorted(found.items(), reverse=True)
    while pending:
        a, b = pending.pop()
        cells = one.cells[a], other.cells[b]
        if not cells[0].ordered or len(cells[0].streams) != len(cells[1].streams):
            continue
        for mine, theirs in zip(cells[0].streams, cells[1].streams, strict=True):
            pair = mine.cell, theirs.cell
            fits = seeds[0][pair[0]] == seeds[1][pair[1]]
            if fits and pair[0] not in found and pair[1] not in taken:
                found[pair[0]] = pair[1]
                taken.add(pair[1])
                pending.append(pair)
