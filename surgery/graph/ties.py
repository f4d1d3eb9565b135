"""Cells that look the same: telling them apart one after the other, and every way to do it.

Colours that tell of everything around a cell leave together what is the same from everywhere.
There one pair is given a colour of its own, and what follows from that is followed as far as it
reaches and no further: telling a hundred branches apart costs a hundred branches.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from surgery.graph.refine import Colours, Sides, Way

# Cells of the first graph, each with the cell of the second that it is.
Pairs: TypeAlias = tuple[tuple[int, int], ...]
Tie: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Settled:
    """One way to tell cells apart.

    Attributes:
        pairs: every cell of the first graph with one of the second.
        open: the groups in which nothing but the order of execution decided.
        choices: among how many cells each decision was made.
    """

    pairs: Pairs
    open: tuple[Tie, ...]
    choices: tuple[int, ...]


def settled(
    sides: Sides, colours: tuple[Colours, Colours], way: Way, limit: int
) -> Iterator[Settled]:
    """Every way to tell cells of one colour apart, the likeliest first.

    Args:
        sides: two graphs.
        colours: of their cells, both with every colour equally often, refined until nothing
            changed.
        way: what to tell of the operations between two cells, to see which are more alike.
        limit: how many ways at most.
    """
    ties = _Ties(sides, colours, way)
    first = ties.settle(())
    if first is None:
        return
    yield first
    seen = {first.pairs}
    for ranks in itertools.islice(_ranks(first.choices, limit), 1, limit):
        found = ties.settle(ranks)
        if found is not None and found.pairs not in seen:
            seen.add(found.pairs)
            yield found


def _ranks(choices: tuple[int, ...], limit: int) -> Iterator[tuple[int, ...]]:
    """Which candidate to take in each tie: the first in all, the second in all; then all mixed."""
    yield from (tuple(r % size for size in choices) for r in range(max(choices, default=1)))
    if math.prod(choices) <= limit:
        yield from itertools.product(*map(range, choices))
        return
    for place, size in enumerate(choices):
        for rank in range(1, size):
            yield tuple(rank if place == other else 0 for other in range(len(choices)))


@dataclass(eq=False)
class _Ties:
    """The colours of both graphs as one list: those of the second stand behind the first's."""

    sides: Sides
    start: tuple[Colours, Colours]
    way: Way
    colours: list[int] = field(init=False)
    members: dict[int, dict[int, None]] = field(init=False)
    into: list[tuple[tuple[int, int], ...]] = field(init=False)
    readers: list[list[tuple[int, int, int]]] = field(init=False)
    log: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.colours = [*self.start[0], *self.start[1]]
        self.fresh = itertools.count(max(self.colours, default=0) + 1)
        self.members = {}
        for place, colour in enumerate(self.colours):
            self.members.setdefault(colour, {})[place] = None
        numbers: dict[Hashable, int] = {}
        self.into, self.readers = [], [[] for _ in self.colours]
        self.ordered = [cell.ordered for side in self.sides for cell in side.cells]
        for side, ahead in zip(self.sides, (0, len(self.start[0])), strict=True):
            for number, cell in enumerate(side.cells):
                streams: list[tuple[int, int]] = []
                for stream in cell.streams:
                    how = numbers.setdefault(self.way(side, stream), len(numbers))
                    streams.append((ahead + stream.cell, how))
                self.into.append(tuple(streams))
                for place, (source, how) in enumerate(streams):
                    at = place if cell.ordered else -1
                    self.readers[source].append((ahead + number, at, how))

    def settle(self, ranks: tuple[int, ...]) -> Settled | None:
        """Tell all cells apart, taking of the candidates for each the one of a rank."""
        self._back(0)
        count = len(self.start[0])
        pairs: list[tuple[int, int]] = []
        ties: list[Tie] = []
        choices: list[int] = []
        for cell in range(count):
            alike = sorted(self.members[self.colours[cell]])
            ours = tuple(each for each in alike if each < count)
            theirs = tuple(each for each in alike if each >= count)
            if len(ours) > 1:
                ranked = self._ranked(cell, theirs)
                if len(ranked[0]) > 1:
                    ties.append((ours, tuple(each - count for each in theirs)))
                candidates = [each for group in ranked for each in group]
                place = len(choices)
                first = ranks[place] % len(candidates) if place < len(ranks) else 0
                choices.append(len(candidates))
                if not self._choose(cell, [*candidates[first:], *candidates[:first]]):
                    return None
        for cell in range(count):
            (twin,) = (n for n in self.members[self.colours[cell]] if n >= count)
            pairs.append((cell, twin - count))
        return Settled(tuple(pairs), tuple(ties), tuple(choices))

    def _ranked(self, cell: int, candidates: tuple[int, ...]) -> list[list[int]]:
        """Candidates by how many of the ways to and from them are those of a cell."""
        wanted = self._around(cell)
        found: dict[int, list[int]] = {}
        for each in candidates:
            found.setdefault((wanted & self._around(each)).total(), []).append(each)
        return [found[likeness] for likeness in sorted(found, reverse=True)]

    def _around(self, cell: int) -> Counter[tuple[int, int, int]]:
        """The ways to and from a cell, with the colours at their ends."""
        near = [(place, self.colours[s], how) for place, (s, how) in enumerate(self.into[cell])]
        if not self.ordered[cell]:
            near = [(-1, colour, how) for _, colour, how in near]
        near += [(-2 - place, self.colours[n], how) for n, place, how in self.readers[cell]]
        return Counter(near)

    def _choose(self, cell: int, candidates: list[int]) -> bool:
        """Pair a cell with the first candidate that leaves both graphs alike, if one does."""
        before = len(self.log)
        for candidate in candidates:
            if self._paired(cell, candidate):
                return True
            self._back(before)
        return False

    def _paired(self, one: int, other: int) -> bool:
        """Give two cells a colour of their own and follow it; whether both graphs stay alike."""
        changed = [one, other]
        self._paint(changed)
        while changed:
            touched = dict.fromkeys(near for cell in changed for near in self._near(cell))
            parts: dict[int, dict[Hashable, list[int]]] = {}
            for cell in touched:
                told = parts.setdefault(self.colours[cell], {})
                told.setdefault(self._told(cell), []).append(cell)
            changed = []
            for colour, told in parts.items():
                fragments = list(told.values())
                if any(not self._even(fragment) for fragment in fragments):
                    return False
                if sum(map(len, fragments)) == len(self.members[colour]):
                    fragments.remove(max(fragments, key=len))
                for fragment in fragments:
                    self._paint(fragment)
                    changed += fragment
        return True

    def _even(self, cells: list[int]) -> bool:
        count = len(self.start[0])
        return 2 * sum(cell < count for cell in cells) == len(cells)

    def _near(self, cell: int) -> Iterator[int]:
        yield from (source for source, _ in self.into[cell])
        yield from (reader for reader, _, _ in self.readers[cell])

    def _told(self, cell: int) -> Hashable:
        """The colours around a cell."""
        into = [self.colours[source] for source, _ in self.into[cell]]
        out = sorted((self.colours[reader], place) for reader, place, _ in self.readers[cell])
        return tuple(into if self.ordered[cell] else sorted(into)), tuple(out)

    def _paint(self, cells: list[int]) -> None:
        fresh = next(self.fresh)
        for cell in cells:
            self.log.append((cell, self.colours[cell]))
            self._move(cell, fresh)

    def _move(self, cell: int, colour: int) -> None:
        del self.members[self.colours[cell]][cell]
        self.colours[cell] = colour
        self.members.setdefault(colour, {})[cell] = None

    def _back(self, length: int) -> None:
        """Take back what was painted since the log was so long."""
        while len(self.log) > length:
            self._move(*self.log.pop())
