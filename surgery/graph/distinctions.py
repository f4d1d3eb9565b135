"""What aligned operations differ in besides their tensors: eps, stride, padding, activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from surgery.graph.align import Alignment
from surgery.graph.canonical import Stream
from surgery.graph.graph import Node
from surgery.graph.wording import name_of, plain, settings_of, written

# Cells whose node says how they compute; that of a bare value is whatever reads it.
_TOLD = frozenset({"product", "norm", "scale"})

# Operators of joins that are called a sum, and are not the same.
_SUMS = frozenset({"sub", "rsub"})


@dataclass(frozen=True)
class Distinction:
    """One thing in which two operations differ that stand in the same place.

    Attributes:
        donor: the address of the module that the donor's ran in.
        recipient: that of the recipient's.
        operation: the recipient's operator.
        name: the argument, ``eps``; empty where the operations themselves are different.
        theirs: what the donor has.
        ours: what the recipient has.
    """

    donor: str
    recipient: str
    operation: str
    name: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        what = [self.recipient or "the model", self.operation, self.name]
        where, there = " ".join(filter(None, what)), self.donor or "the model"
        return f"{where}: {self.theirs} in the donor ({there}), {self.ours} in the recipient"


def distinctions(alignment: Alignment) -> Iterator[Distinction]:
    """What aligned cells differ in themselves: these change what comes out."""
    for a, b in alignment.pairs:
        one, other = alignment.one.cells[a], alignment.other.cells[b]
        if one.kind in _TOLD:
            nodes = alignment.one.graph.nodes[one.node], alignment.other.graph.nodes[other.node]
            yield from _between(*nodes)


def folded(found: Iterable[Distinction]) -> Iterator[str]:
    """One sentence for all operations that differ in the same way.

    Example:
        >>> found = [Distinction("a", f"b{n}", "batch_norm", "eps", 0.1, 0.2) for n in range(3)]
        >>> list(folded(found))
        ['b0 batch_norm eps: 0.1 in the donor (a), 0.2 in the recipient; and 2 more like this']
    """
    alike: dict[str, dict[str, None]] = {}
    for each in found:
        key = str((each.operation, each.name, each.theirs, each.ours))
        alike.setdefault(key, {})[str(each)] = None
    for first, *others in alike.values():
        yield first + (f"; and {len(others)} more like this" if others else "")


def ways(alignment: Alignment) -> Iterator[Distinction]:
    """What lies between aligned cells and differs: it may be the same, written another way."""
    yield from _sums(alignment)
    paired = dict(alignment.pairs)
    ends = [(e, f) for e, f in zip(alignment.one.ends, alignment.other.ends, strict=False)]
    flows: list[tuple[Stream, Stream]] = []
    for a, b in alignment.pairs:
        theirs_by: dict[int, list[Stream]] = {}
        for stream in alignment.other.cells[b].streams:
            theirs_by.setdefault(stream.cell, []).append(stream)
        for mine in alignment.one.cells[a].streams:
            flows += [(mine, theirs) for theirs in theirs_by.get(paired.get(mine.cell, -1), ())]
    flows += [
        (e.stream, f.stream)
        for e, f in ends
        if e.stream is not None and f.stream and paired.get(e.stream.cell) == f.stream.cell
    ]
    for mine, theirs in flows:
        yield from _chains(
            [alignment.one.graph.nodes[number] for number in mine.via],
            [alignment.other.graph.nodes[number] for number in theirs.via],
        )


def _sums(alignment: Alignment) -> Iterator[Distinction]:
    """Where streams meet, and one of the two takes away or weighs what the other adds."""
    for a, b in alignment.pairs:
        cells = alignment.one.cells[a], alignment.other.cells[b]
        if cells[0].kind != "join" or cells[0].name != "add":
            continue
        one = alignment.one.graph.nodes[cells[0].node]
        other = alignment.other.graph.nodes[cells[1].node]
        names = name_of(one), name_of(other)
        if names[0] != names[1] and {*names} & _SUMS:
            yield Distinction(one.module, other.module, "", "", *names)
        yield from (each for each in _between(one, other) if each.name == "alpha")


def _chains(one: list[Node], other: list[Node]) -> Iterator[Distinction]:
    names = [[name_of(node) for node in chain] for chain in (one, other)]
    if names[0] == names[1]:
        for a, b in zip(one, other, strict=True):
            yield from _between(a, b)
        return
    modules = [chain[0].module if chain else "" for chain in (one, other)]
    told = [" then ".join(map(written, chain)) or "nothing" for chain in (one, other)]
    yield Distinction(modules[0], modules[1], "", "", told[0], told[1])


def _between(one: Node, other: Node) -> Iterator[Distinction]:
    """The settings that two operations of one sort have in common and that differ."""
    mine, theirs = settings_of(one), settings_of(other)
    common = mine.keys() & theirs.keys()
    if name_of(one) != name_of(other):
        common &= {"eps"}
    for name in sorted(common):
        if plain(mine[name]) != plain(theirs[name]):
            yield Distinction(
                one.module, other.module, name_of(other), name, mine[name], theirs[name]
            )
