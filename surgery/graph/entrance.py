"""Find where a model takes its inputs: the first mixing operation behind each.

Everything here is pure: values in, values out, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from surgery.graph.aten import CONTRACTIONS, packet
from surgery.graph.axes import follow
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.origins import Numbers, along, carry, is_movement
from surgery.graph.skeleton import is_floating
from surgery.graph.walk import Mixing, mixing, weight_sources


@dataclass(frozen=True)
class Layout:
    """How the channels of an input lie along one axis of a weight.

    From ``start`` on there are ``outer`` times all channels, ``inner`` entries of each: inner is
    one where patches are laid flat with the channels last, and the size of a patch where they
    come first.
    """

    start: int
    outer: int
    inner: int

    def length(self, channels: int) -> int:
        """How many entries so many channels take up."""
        return self.outer * self.inner * channels


@dataclass(frozen=True)
class Entrance:
    """The first operation that mixes the channels of an input with weights.

    Attributes:
        path: the input, ``args[0]``.
        axis: the axis of the input that holds the channels.
        channels: how many.
        node: the operation.
        weight: the parameter, buffer or attribute that is the weight.
        weight_axis: its axis that the channels lie along.
        layout: how they lie there.
        moved_only: the weight is used as it is stored (transposed and reshaped at most), and is
            not computed from several tensors or scaled.
        groups: of a convolution; 1 elsewhere.
        padded: zeros stand around the input when it gets there.
    """

    path: str
    axis: int
    channels: int
    node: int
    weight: tuple[str, ...]
    weight_axis: int
    layout: Layout
    moved_only: bool
    groups: int = 1
    padded: bool = False


@dataclass(frozen=True)
class Unseen:
    """A first mixing operation whose channels could not be traced to the input.

    Attributes:
        path: the input.
        node: the operation.
        weights: addresses of what it mixes with.
        reason: why, in words.
    """

    path: str
    node: int
    weights: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Entrances:
    """What was found behind every input with floating-point values."""

    found: tuple[Entrance, ...] = ()
    unseen: tuple[Unseen, ...] = ()


def find_entrances(graph: Graph) -> Entrances:
    """The first mixing operations behind each input, and how the channels get there.

    Args:
        graph: the recorded forward pass.

    Returns:
        Those that could be traced to an axis of an input, and those that could not.
    """
    found: list[Entrance] = []
    unseen: list[Unseen] = []
    for node in graph.nodes:
        if node.role != "input" or not is_floating(node.outputs[0].dtype):
            continue
        path, start = node.addresses[0], Ref(node.index)
        first = list(first_mixings(graph, start))
        stop = {mixed.node for mixed in first}
        shape = node.outputs[0].shape
        carried = [carry(graph, start, axis, stop) for axis in range(len(shape))]
        for mixed in first:
            entrance = _entrance(graph, path, start, mixed, carried)
            if isinstance(entrance, Entrance):
                found.append(entrance)
            else:
                names = tuple(s.addresses[0] for s in weight_sources(graph, mixed.weight))
                unseen.append(Unseen(path, mixed.node, names, entrance))
    return Entrances(tuple(found), tuple(unseen))


def first_mixings(graph: Graph, start: Ref) -> Iterator[Mixing]:
    """The mixing operations that a value reaches without passing another, in order."""
    reached = {start.node}
    for node in graph.nodes[start.node + 1 :]:
        if reached.isdisjoint(ref.node for ref in node.inputs):
            continue
        mixed = mixing(graph, node)
        if mixed is None:
            reached.add(node.index)
        else:
            yield mixed


def per_channel(graph: Graph, start: Ref, axis: int) -> tuple[tuple[Node, int], ...]:
    """What meets the channels on their way in: means, deviations, the tensors of a norm.

    Args:
        graph: the recorded forward pass.
        start: the input.
        axis: its axis that holds the channels.

    Returns:
        Each tensor that no operation made, with its axis that has one entry a channel.
    """
    found: dict[int, tuple[Node, int]] = {}
    size = graph.spec(start).shape[axis]
    for meeting in follow(graph, start, axis).meetings:
        if meeting.contracted:
            continue
        for source in _sources(graph, meeting.operand):
            for place, length in enumerate(source.outputs[0].shape):
                if length != size:
                    continue
                track = follow(graph, Ref(source.index), place).axes
                if track.get(meeting.operand) == meeting.axis:
                    found[source.index] = (source, place)
    return tuple(found.values())


def picks(graph: Graph, start: Ref, axis: int) -> tuple[Node, ...]:
    """The operations that take single channels of an input by number."""
    track = follow(graph, start, axis)
    nodes = (graph.nodes[index] for index in track.lost)
    return tuple(n for n in nodes if packet(n.operation) in ("select", "unbind", "split", "index"))


def _sources(graph: Graph, ref: Ref) -> Iterator[Node]:
    """The tensors without data that a value is computed from, those without a name too."""
    pending, seen = [ref.node], {ref.node}
    while pending:
        node = graph.nodes[pending.pop()]
        if node.role in ("parameter", "buffer", "constant"):
            yield node
        for other in node.inputs:
            if other.node not in seen:
                seen.add(other.node)
                pending.append(other.node)


def _entrance(
    graph: Graph, path: str, start: Ref, mixed: Mixing, carried: Sequence[Numbers]
) -> Entrance | str:
    node = graph.nodes[mixed.node]
    name = packet(node.operation)
    if name not in CONTRACTIONS or name == "_trilinear":
        return f"{node.operation} is no convolution and no matrix product"
    first, second = (node.arguments[place] for place in CONTRACTIONS[name])
    data = first if mixed.weight == second else second
    convolution = "convolution" in name
    rank, depth = len(graph.spec(data).shape), len(graph.spec(mixed.weight).shape)
    if convolution:
        data_axis, operand_axis = 1, 0 if node.arguments[6] is True else 1
    elif mixed.weight == second:
        data_axis, operand_axis = rank - 1, max(depth - 2, 0)
    else:
        data_axis, operand_axis = max(rank - 2, 0), depth - 1
    axis, origin = _channels(graph, start, data, data_axis, carried)
    if origin is None:
        return "its features are no whole channels of the input"
    groups = node.arguments[8] if convolution and len(node.arguments) > 8 else 1
    if groups != 1:
        # Each group of the weight reads another part of the channels.
        origin = origin[: len(origin) // groups]
    stored = _stored(graph, mixed.weight, operand_axis, origin)
    if stored is None:
        return "its weight is computed in a way that mixes the channels"
    source, weight_axis, channels = stored
    count = graph.spec(start).shape[axis]
    layout = _layout(channels, count // groups if groups > 1 else count)
    if layout is None:
        return "the channels lie in no regular order along its weight"
    between = _between(graph, Ref(source.index), mixed.weight)
    return Entrance(
        path,
        axis,
        count,
        mixed.node,
        source.addresses,
        weight_axis,
        layout,
        all(is_movement(each) for each in between) and len(weight_sources(graph, mixed.weight)) < 2,
        groups,
        _is_padded(graph, start, data, node),
    )


def _channels(
    graph: Graph, start: Ref, data: Ref, data_axis: int, carried: Sequence[Numbers]
) -> tuple[int, tuple[int, ...] | None]:
    """The axis of an input that its features come from, and for each feature the channel."""
    found: list[tuple[bool, bool, bool, int, tuple[int, ...]]] = []
    for axis, numbers in enumerate(carried):
        if data not in numbers:
            continue
        origin = along(numbers[data], data_axis)
        if origin is None or not any(origin):
            continue
        apart = follow(graph, start, axis).axes.get(data) == data_axis
        found.append((apart, len(set(origin)) > 1, axis == 1, -axis, origin))
    if not found:
        return 0, None
    *_, place, origin = max(found)
    return -place, origin


def _stored(
    graph: Graph, weight: Ref, axis: int, origin: tuple[int, ...]
) -> tuple[Node, int, tuple[int, ...]] | None:
    """The tensor that a weight is stored in, the axis for the channels, and each one's channel."""
    for source in weight_sources(graph, weight):
        for place, length in enumerate(source.outputs[0].shape):
            numbers = carry(graph, Ref(source.index), place).get(weight)
            stored = along(numbers, axis) if numbers is not None else None
            if stored is None or len(stored) != len(origin) or 0 in stored:
                continue
            pairs = set(zip(stored, origin, strict=True))
            if len(pairs) == length == len(dict(pairs)):
                return source, place, tuple(channel for _, channel in sorted(pairs))
    return None


def _layout(origin: tuple[int, ...], channels: int) -> Layout | None:
    held = [place for place, channel in enumerate(origin) if channel]
    start, stop = held[0], held[-1] + 1
    part = origin[start:stop]
    inner = next((i for i, channel in enumerate(part) if channel != part[0]), len(part))
    if len(part) % (inner * channels):
        return None
    regular = all(channel == place // inner % channels + 1 for place, channel in enumerate(part))
    return Layout(start, len(part) // (inner * channels), inner) if regular else None


def _between(graph: Graph, first: Ref, last: Ref) -> list[Node]:
    """The operations that a value is made by, from another."""
    found: dict[int, Node] = {}
    pending = [last.node]
    while pending:
        index = pending.pop()
        node = graph.nodes[index]
        if index in found or index == first.node or node.role != "operation":
            continue
        found[index] = node
        pending.extend(ref.node for ref in node.inputs)
    return list(found.values())


def _is_padded(graph: Graph, start: Ref, data: Ref, node: Node) -> bool:
    convolution = "convolution" in packet(node.operation)
    padded = convolution and any(node.arguments[4])
    ways = _between(graph, start, data)
    return padded or any(packet(each.operation) == "constant_pad_nd" for each in ways)
