"""What aligned operations differ in besides their tensors: eps, stride, padding, activations."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from surgery.graph.align import Alignment
from surgery.graph.bounds import Bound, bounds_apart
from surgery.graph.canonical import Canonical, Stream
from surgery.graph.epsilon import epsilon
from surgery.graph.graph import Node, Ref
from surgery.graph.regions import regions
from surgery.graph.spelling import Word, spelled, unequal
from surgery.graph.wording import alike, name_of, settings_of, written

# Cells whose node says how they compute; that of a bare value is whatever reads it.
_TOLD = frozenset({"product", "norm", "scale"})

# What operators put around their input, by the beginnings of their names.
_MODES = {"reflection_pad": "reflect", "replication_pad": "replicate"}
_WRITES = frozenset({"copy", "updated"})
_ZEROS = "constant_pad_nd"

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
            modes = list(_modes(alignment, a, b)) if name_of(nodes[0]) == "convolution" else []
            yield from modes
            # Padding in two steps is told as a whole, also where both come to the same.
            pads = _pad(alignment.one, a) or _pad(alignment.other, b)
            whole = modes or (name_of(nodes[0]) == "convolution" and pads)
            yield from (d for d in _between(*nodes) if not whole or d.name != "padding")
            if one.kind == "norm":
                yield from _epsilons(alignment, a, b)
        elif one.kind == "join" and one.name == other.name == "bmm":
            yield from _heads(alignment, a, b)


def _epsilons(alignment: Alignment, a: int, b: int) -> Iterator[Distinction]:
    """What two normalisations add to their variance, where one of them is written out."""
    sides = (alignment.one, a), (alignment.other, b)
    nodes = [side.graph.nodes[side.cells[number].node] for side, number in sides]
    if all("eps" in settings_of(node) for node in nodes):
        return
    one, other = (epsilon(*side) for side in sides)
    if one is not None and other is not None and not alike(one, other):
        modules = [side.cells[number].module for side, number in sides]
        yield Distinction(modules[0], modules[1], "batch_norm", "eps", one, other)


def _modes(alignment: Alignment, a: int, b: int) -> Iterator[Distinction]:
    """What two convolutions put around their input, where it is as wide in both."""
    sides = (alignment.one, a), (alignment.other, b)
    (mode, width), (other, wide) = (_padding(side, number) for side, number in sides)
    modules = [side.cells[number].module for side, number in sides]
    if mode != other and width == wide:
        yield Distinction(modules[0], modules[1], "convolution", "padding_mode", mode, other)
    elif mode == other == "zeros":
        yield from _zeros(alignment, a, b)


def _zeros(alignment: Alignment, a: int, b: int) -> Iterator[Distinction]:
    """What two convolutions put around their input where one of them does so in two steps.

    Told in words: what an operation pads is no attribute of the layer.
    """
    sides = (alignment.one, a), (alignment.other, b)
    pads = [_pad(side, number) for side, number in sides]
    if pads == [None, None]:
        return
    cells = [side.cells[number] for side, number in sides]
    nodes = [side.graph.nodes[cell.node] for (side, _), cell in zip(sides, cells, strict=True)]
    around = [_around(*each) for each in zip(nodes, pads, strict=True)]
    told = [
        f"{settings_of(node).get('padding')}" + (f" behind {written(pad)}" if pad else "")
        for node, pad in zip(nodes, pads, strict=True)
    ]
    if around[0] != around[1]:
        yield Distinction(cells[0].module, cells[1].module, "convolution", "padding", *told)


def _pad(side: Canonical, number: int) -> Node | None:
    """The operation that puts zeros around the input of a convolution, if there is one."""
    cell = side.cells[number]
    before = [side.graph.nodes[n] for stream in cell.streams[:1] for n in stream.via]
    return before[-1] if before and name_of(before[-1]) == _ZEROS else None


def _around(node: Node, pad: Node | None) -> list[int]:
    """By how much an input is longer at each end, the last axis first."""
    axes = len(node.outputs[0].shape) - 2
    longer = list(settings_of(node).get("padding", ()))
    longer *= axes if len(longer) == 1 else 1
    found = [size for each in reversed(longer) for size in (each, each)]
    given = list(settings_of(pad).get("pad", ())) if pad is not None else []
    more = given[: len(found)] + [0] * (len(found) - len(given))
    return [size + extra for size, extra in zip(found, more, strict=True)]


def _padding(side: Canonical, number: int) -> tuple[str, tuple[int, ...]]:
    """What stands around the input of a convolution, and by how much it is longer for it."""
    cell = side.cells[number]
    node = side.graph.nodes[cell.node]
    before = [side.graph.nodes[n] for stream in cell.streams[:1] for n in stream.via]
    longer = list(settings_of(node).get("padding", ()))
    if len(longer) == 1:
        longer *= len(side.graph.spec(node.inputs[0]).shape) - 2
    sizes = [2 * each for each in longer]
    mode, inner = _mode(before)
    if inner is not None:
        around, middle = (side.graph.spec(ref).shape[2:] for ref in (node.inputs[0], inner))
        pairs = zip(sizes, around, middle, strict=True)
        sizes = [size + whole - part for size, whole, part in pairs]
    return mode, tuple(sizes)


def _mode(before: Sequence[Node]) -> tuple[str, Ref | None]:
    """How operations pad, by the last of them, and what they put something around."""
    last = name_of(before[-1]) if before else ""
    for part, mode in _MODES.items():
        if last.startswith(part):
            return mode, before[-1].inputs[0]
    run = list(itertools.takewhile(lambda node: name_of(node) in _WRITES, reversed(before)))
    # Numbers from the other end are written around a copy.
    return ("circular", run[-1].inputs[-1]) if len(run) > 1 else ("zeros", None)


def _heads(alignment: Alignment, a: int, b: int) -> Iterator[Distinction]:
    """Into how many heads of which size attention cuts the same features."""
    one, other = _head(alignment.one, a), _head(alignment.other, b)
    if one is None or other is None or one[0] != other[0] or one[1] == other[1]:
        return
    sides = (alignment.one, a), (alignment.other, b)
    modules = [side.cells[number].module for side, number in sides]
    counts = [features // size for features, size in (one, other)]
    settings = {"num_heads": (counts[0], counts[1]), "head_dim": (one[1], other[1])}
    for name, (theirs, ours) in settings.items():
        yield Distinction(modules[0], modules[1], "attention", name, theirs, ours)


def _head(side: Canonical, number: int) -> tuple[int, int] | None:
    """How many features queries have, and how many of them one head; None for no queries."""
    cell = side.cells[number]
    while cell.streams:
        source = side.cells[cell.streams[0].cell]
        if source.kind == "product":
            node = side.graph.nodes[side.cells[number].node]
            first = node.inputs[1 if name_of(node) == "baddbmm" else 0]
            features, size = source.shape[0], side.graph.spec(first).shape[-1]
            return None if features % size else (features, size)
        if source.kind == "join" and source.name == "bmm":
            return None
        cell = source
    return None


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
    for a, b in alignment.pairs:
        cells = alignment.one.cells[a], alignment.other.cells[b]
        mine, theirs = (_by_source(cell.streams) for cell in cells)
        for source, streams in mine.items():
            twins = theirs.get(paired.get(source, -1), [])
            yield from _apart(alignment, streams, twins, padded=_padded(alignment, a, b))
    for e, f in zip(alignment.one.ends, alignment.other.ends, strict=False):
        if e.stream is not None and f.stream and paired.get(e.stream.cell) == f.stream.cell:
            yield from _apart(alignment, [e.stream], [f.stream], padded=False)
    for one, other in regions(alignment):
        for pair in bounds_apart(one, other):
            yield from _bounded(*pair)


def _by_source(streams: Iterable[Stream]) -> dict[int, list[Stream]]:
    found: dict[int, list[Stream]] = defaultdict(list)
    for stream in streams:
        found[stream.cell].append(stream)
    return found


def _padded(alignment: Alignment, a: int, b: int) -> bool:
    """Whether padding in front of both is told with them: they are convolutions."""
    sides = (alignment.one, a), (alignment.other, b)
    cells = [(side, side.cells[number]) for side, number in sides]
    return all(
        cell.kind == "product" and name_of(side.graph.nodes[cell.node]) == "convolution"
        for side, cell in cells
    )


def _apart(
    alignment: Alignment, one: list[Stream], other: list[Stream], *, padded: bool
) -> Iterator[Distinction]:
    """In what the ways from one cell to another differ; several are told in order."""
    mine, theirs = (
        [_unpadded(spelled(side.graph, stream.via), padded=padded) for stream in streams]
        for side, streams in ((alignment.one, one), (alignment.other, other))
    )
    left, rest = unequal(mine, theirs)
    pairs = zip(left, rest, strict=True) if len(left) == len(rest) else product(left, rest)
    for pair in pairs:
        yield from _chains(*pair)


def _unpadded(way: tuple[Word, ...], *, padded: bool) -> tuple[Word, ...]:
    return way[:-1] if padded and way and way[-1].name == _ZEROS else way


def _bounded(one: Bound | None, other: Bound | None) -> Iterator[Distinction]:
    """Bounds that are others, or that only one of two has, whatever the operations are called."""
    found = [each for each in (other, one) if each is not None]
    nodes = [each.node for each in found]
    if len(nodes) > 1 and name_of(nodes[0]) == name_of(nodes[1]):
        yield from _between(nodes[1], nodes[0])
        return
    modules = [each.node.module if each is not None else "" for each in (one, other)]
    values = [dict(each.values) if each is not None else {} for each in (one, other)]
    for name in sorted(values[0].keys() | values[1].keys()):
        theirs, ours = (each.get(name, "none") for each in values)
        if theirs != ours:
            yield Distinction(modules[0], modules[1], name_of(nodes[0]), name, theirs, ours)


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


def _chains(one: Sequence[Word], other: Sequence[Word]) -> Iterator[Distinction]:
    names = [[word.name for word in way] for way in (one, other)]
    if names[0] == names[1]:
        for a, b in zip(one, other, strict=True):
            if len(a.nodes) == len(b.nodes) == 1:
                yield from _between(a.nodes[0], b.nodes[0])
        return
    modules = [way[0].nodes[0].module if way else "" for way in (one, other)]
    told = [" then ".join(map(str, way)) or "nothing" for way in (one, other)]
    yield Distinction(modules[0], modules[1], "", "", told[0], told[1])


def _between(one: Node, other: Node) -> Iterator[Distinction]:
    """The settings that two operations of one sort have in common and that differ."""
    mine, theirs = settings_of(one), settings_of(other)
    common = mine.keys() & theirs.keys()
    if name_of(one) != name_of(other):
        common &= {"eps"}
    for name in sorted(common):
        if not alike(mine[name], theirs[name]):
            yield Distinction(
                one.module, other.module, name_of(other), name, mine[name], theirs[name]
            )
