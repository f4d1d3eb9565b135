"""What aligned operations differ in besides their tensors: eps, stride, padding, activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from surgery.graph.align import Alignment
from surgery.graph.aten import operator, packet
from surgery.graph.graph import Node, Ref

# Arguments that change no number that comes out in eval mode.
_IDLE = frozenset(
    {
        *("padding_idx", "scale_grad_by_freq", "sparse", "group", "log2"),
        *("momentum", "training", "train", "cudnn_enabled", "cudnn_enable", "benchmark"),
        *("deterministic", "inplace", "dtype", "layout", "device", "pin_memory", "half_to_float"),
        *("memory_format", "weight_decay", "output_padding", "N", "C", "HxW", "normalized_shape"),
    }
)

# Cells whose node says how they compute; that of a bare value is whatever reads it.
_TOLD = frozenset({"product", "norm", "scale"})


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
    paired = dict(alignment.pairs)
    ends = [(e, f) for e, f in zip(alignment.one.ends, alignment.other.ends, strict=False)]
    flows = [
        (mine, theirs)
        for a, b in alignment.pairs
        for mine in alignment.one.cells[a].streams
        for theirs in alignment.other.cells[b].streams
    ]
    flows += [(e.stream, f.stream) for e, f in ends if e.stream is not None and f.stream]
    for mine, theirs in flows:
        if paired.get(mine.cell) != theirs.cell:
            continue
        yield from _chains(
            [alignment.one.graph.nodes[number] for number in mine.via],
            [alignment.other.graph.nodes[number] for number in theirs.via],
        )


def _chains(one: list[Node], other: list[Node]) -> Iterator[Distinction]:
    names = [[_name(node) for node in chain] for chain in (one, other)]
    if names[0] == names[1]:
        for a, b in zip(one, other, strict=True):
            yield from _between(a, b)
        return
    modules = [chain[0].module if chain else "" for chain in (one, other)]
    told = [" then ".join(map(_written, chain)) or "nothing" for chain in (one, other)]
    yield Distinction(modules[0], modules[1], "", "", told[0], told[1])


def _written(node: Node) -> str:
    settings = _settings(node)
    told = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    return f"{_name(node)}({told})"


def _name(node: Node) -> str:
    """What an operator is called, without what only says how it is carried out."""
    name = packet(node.operation).strip("_")
    return name.removeprefix("native_").removesuffix("_legit_no_training")


def _between(one: Node, other: Node) -> Iterator[Distinction]:
    """The settings that two operations of one sort have in common and that differ."""
    mine, theirs = _settings(one), _settings(other)
    for name in (
        mine.keys() & theirs.keys() if _name(one) == _name(other) else mine.keys() & {"eps"}
    ):
        if name in theirs and _plain(mine[name]) != _plain(theirs[name]):
            yield Distinction(
                one.module, other.module, _name(other), name, mine[name], theirs[name]
            )


def _plain(value: Any) -> Any:
    """A setting with one number for all axes, where they have the same."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _settings(node: Node) -> dict[str, Any]:
    """The arguments of an operation that are no tensors, by name, defaults filled in."""
    found = operator(node.operation)
    schema = getattr(found, "_schema", None)
    if schema is None:
        return {}
    given = dict(node.keywords)
    settings = {}
    for place, argument in enumerate(schema.arguments):
        value = (
            node.arguments[place]
            if place < len(node.arguments)
            else given.get(argument.name, argument.default_value)
        )
        if argument.name in _IDLE or isinstance(value, Ref) or value == "Tensor":
            continue
        if isinstance(value, tuple | list):
            if any(isinstance(item, Ref) for item in value):
                continue
            value = tuple(value)
        settings[argument.name] = value
    return settings
