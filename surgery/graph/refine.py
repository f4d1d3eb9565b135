"""Colour refinement: which cells of two graphs stand in the same place.

After Weisfeiler and Lehman. A colour is a number for everything that is known of a cell: what it
is, what leads to it and what it leads to. A forward pass has no cycle, so one sweep in order of
execution and one against it see as far as the graph goes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from surgery.graph.canonical import Canonical, Stream

Colours: TypeAlias = list[int]
Sides: TypeAlias = tuple[Canonical, Canonical]
# What is told of the way from one cell to the next; an empty tuple says nothing.
Way: TypeAlias = Callable[[Canonical, Stream], Hashable]


@dataclass(eq=False)
class Palette:
    """Numbers for things, equal for equal things: one palette serves both graphs."""

    known: dict[Hashable, int] = field(default_factory=dict)

    def number(self, thing: Hashable) -> int:
        """The number of a thing."""
        return self.known.setdefault(thing, len(self.known))


def silent(side: Canonical, stream: Stream) -> Hashable:
    """The way between cells that says nothing."""
    return ()


def remembered(way: Way) -> Way:
    """The same of ways, each looked at once."""
    known: dict[tuple[int, Stream], Hashable] = {}

    def told(side: Canonical, stream: Stream) -> Hashable:
        key = id(side), stream
        if key not in known:
            known[key] = way(side, stream)
        return known[key]

    return told


def agreed(sides: Sides, colours: tuple[Colours, Colours], way: Way) -> Way:
    """The same of ways, silent of those from cells where the two graphs have different ones.

    Args:
        sides: two graphs.
        colours: of their cells.
        way: what to tell of the operations between two cells.
    """
    told = remembered(way)
    counts: list[dict[int, Counter[Hashable]]] = [defaultdict(Counter), defaultdict(Counter)]
    for side, numbers, count in zip(sides, colours, counts, strict=True):
        ends = (end.stream for end in side.ends if end.stream is not None)
        for stream in (*(each for cell in side.cells for each in cell.streams), *ends):
            count[numbers[stream.cell]][told(side, stream)] += 1
    same = {colour for colour, ways in counts[0].items() if counts[1].get(colour) == ways}
    known = {id(side): numbers for side, numbers in zip(sides, colours, strict=True)}

    def common(side: Canonical, stream: Stream) -> Hashable:
        return told(side, stream) if known[id(side)][stream.cell] in same else ()

    return common


def sources(side: Canonical, seeds: Sequence[int], palette: Palette, way: Way = silent) -> Colours:
    """Colours that know of everything that leads to a cell.

    Args:
        side: the cells of one graph.
        seeds: what is known of each cell by itself.
        palette: numbers that both graphs share.
        way: what to tell of the operations between two cells.
    """
    found: Colours = []
    for cell, seed in zip(side.cells, seeds, strict=True):
        into: Iterable[Hashable] = ((found[s.cell], way(side, s)) for s in cell.streams)
        told = tuple(into) if cell.ordered else tuple(sorted(into, key=repr))
        found.append(palette.number(("from", seed, told)))
    return found


def targets(side: Canonical, seeds: Sequence[int], palette: Palette, way: Way = silent) -> Colours:
    """Colours that know of everything that a cell leads to."""
    readers: list[list[Hashable]] = [[] for _ in side.cells]
    for end in side.ends:
        if end.stream is not None:
            readers[end.stream.cell].append(("end", way(side, end.stream)))
    found: Colours = [0] * len(side.cells)
    for number in range(len(side.cells) - 1, -1, -1):
        cell = side.cells[number]
        told = tuple(sorted(readers[number], key=repr))
        found[number] = colour = palette.number(("to", seeds[number], told))
        for place, stream in enumerate(cell.streams):
            at = place if cell.ordered else -1
            readers[stream.cell].append((colour, at, way(side, stream)))
    return found


def seeds_of(sides: Sides, palette: Palette) -> tuple[Colours, Colours]:
    """What each cell is by itself, where both graphs have such cells; its kind alone where not."""
    labels = [[cell.label for cell in side.cells] for side in sides]
    common = set(labels[0]) & set(labels[1])
    one, other = (
        [
            palette.number(cell.label if cell.label in common else (cell.kind, cell.name))
            for cell in side.cells
        ]
        for side in sides
    )
    return one, other


def kinds_of(sides: Sides, palette: Palette) -> tuple[Colours, Colours]:
    """What each cell is by itself, whatever its size."""
    one, other = ([palette.number((c.kind, c.name)) for c in side.cells] for side in sides)
    return one, other


def refined(
    sides: Sides, seeds: tuple[Colours, Colours], palette: Palette, way: Way = silent
) -> tuple[Colours, Colours]:
    """Refine colours by what leads to a cell and what it leads to, until nothing changes."""
    current = seeds
    count = _classes(current)
    while True:
        one, other = (
            [
                palette.number(("both", a, b))
                for a, b in zip(
                    sources(side, colours, palette, way),
                    targets(side, colours, palette, way),
                    strict=True,
                )
            ]
            for side, colours in zip(sides, current, strict=True)
        )
        current, before = (one, other), count
        count = _classes(current)
        if count == before:
            return current


def _classes(colours: tuple[Colours, Colours]) -> int:
    return len({*colours[0], *colours[1]})


def groups(colours: tuple[Colours, Colours]) -> Iterator[tuple[list[int], list[int]]]:
    """Cells of both graphs that have one colour, in order of execution in the first."""
    found: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, list_of in enumerate(colours):
        for number, colour in enumerate(list_of):
            found[colour][side].append(number)
    return iter(found.values())


def same_counts(colours: tuple[Colours, Colours]) -> bool:
    """Whether both graphs have every colour equally often."""
    return Counter(colours[0]) == Counter(colours[1])
