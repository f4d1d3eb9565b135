"""Follow one axis of a value through a graph: where a class axis goes, and what meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from surgery.graph.aten import CONTRACTIONS, is_pointwise, packet
from surgery.graph.axis_rules import RULES, SPLITTING, VIEWS, expand, nowhere
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.packing import PLAIN, Packing, splits, through_view


@dataclass(frozen=True)
class Meeting:
    """A tensor without data (a bias, a temperature, a weight) that meets the followed axis.

    Attributes:
        node: the operation in which they meet.
        operand: the tensor.
        axis: the axis of the operand that lies on the followed one, or is contracted with it.
        contracted: True where the operation sums over the axis (a layer that reads classes).
        packing: how the followed axis holds the classes there.
    """

    node: int
    operand: Ref
    axis: int
    contracted: bool
    packing: Packing = PLAIN


@dataclass(frozen=True)
class Track:
    """Where an axis went.

    Attributes:
        axes: for every value that still has the axis, which of its axes it is.
        meetings: what it met on the way.
        lost: nodes in which it could not be followed further (merged, reduced, contracted).
        packings: for the values whose axis holds more than one entry a class, how.
    """

    axes: Mapping[Ref, int]
    meetings: tuple[Meeting, ...]
    lost: tuple[int, ...]
    packings: Mapping[Ref, Packing] = field(default_factory=dict)

    def packing(self, ref: Ref) -> Packing:
        """How the axis of a value holds the classes."""
        return self.packings.get(ref, PLAIN)


def is_known(name: str) -> bool:
    """Whether what an operation does to an axis is known, and not guessed from shapes."""
    known = name.startswith("surgery.") or is_pointwise(name)
    return known or packet(name) in RULES or packet(name) in CONTRACTIONS


def follow(graph: Graph, start: Ref, axis: int, packing: Packing = PLAIN) -> Track:
    """Follow an axis of one value forward through everything that depends on it.

    Args:
        graph: the recorded forward pass.
        start: the value.
        axis: its axis, not negative.
        packing: how that axis holds the classes; views may split it, and then they are an axis
            of their own.

    Returns:
        Every value that has the axis, and everything that met it.
    """
    axes: dict[Ref, int] = {start: axis}
    packings: dict[Ref, Packing] = {} if packing == PLAIN else {start: packing}
    meetings: list[Meeting] = []
    lost: list[int] = []
    pending = list(graph.users[start.node])
    seen = set(pending)
    while pending:
        node = graph.nodes[heappop(pending)]
        found: tuple[int, Packing] | None = None
        for position, ref in enumerate(node.inputs):
            if ref not in axes:
                continue
            held = packings.get(ref, PLAIN)
            step = across(graph, node, position, axes[ref])
            meetings += _meetings(graph, node, position, axes[ref], step, held)
            place = _unpacked(graph, node, position, axes[ref], step, held)
            if place is None:
                lost.append(node.index)
            elif found is None:
                found = place
        if found is not None:
            for output, spec in enumerate(node.outputs):
                if found[0] < len(spec.shape):
                    axes[Ref(node.index, output)] = found[0]
                    if found[1] != PLAIN:
                        packings[Ref(node.index, output)] = found[1]
            for user in graph.users[node.index]:
                if user not in seen:
                    seen.add(user)
                    heappush(pending, user)
    return Track(axes, tuple(meetings), tuple(lost), packings)


def packings_of(graph: Graph, track: Track) -> tuple[Packing, ...]:
    """How an axis may hold the classes, from the views that split it where it was lost."""
    found: dict[Packing, None] = {}
    for index in track.lost:
        node = graph.nodes[index]
        if packet(node.operation) in SPLITTING and node.inputs[0] in track.axes:
            before = graph.spec(node.inputs[0]).shape
            for _, packing in splits(before, track.axes[node.inputs[0]], node.outputs[0].shape):
                found[packing] = None
    return tuple(found)


def _unpacked(
    graph: Graph, node: Node, position: int, axis: int, step: int | None, packing: Packing
) -> tuple[int, Packing] | None:
    """The axis that ``across`` found with its packing, or what a view makes of a packed one."""
    if packing == PLAIN or not node.outputs:
        return None if step is None else (step, PLAIN)
    before, after = graph.spec(node.inputs[position]).shape, node.outputs[0].shape
    if step is None:
        splitting = packet(node.operation) in SPLITTING
        return through_view(before, axis, after, packing) if splitting else None
    # A part of a packed axis, or one joined with others, holds the classes in no known way.
    return (step, packing) if after[step] == before[axis] else None


def across(graph: Graph, node: Node, position: int, axis: int) -> int | None:
    """The axis of a node's output that is an axis of one of its inputs, or None where it is lost.

    Args:
        graph: the recorded forward pass.
        node: the operation.
        position: which of its inputs.
        axis: of that input, not negative.
    """
    before = graph.spec(node.inputs[position]).shape
    after = node.outputs[0].shape if node.outputs else ()
    name = packet(node.operation)
    if name == "updated" and position == 1:
        return _through_view(graph, node, axis)
    rule = RULES.get(name)
    if rule is not None:
        found = rule(node, position, axis, before, after)
        return _class_by_class(graph, node, position, axis) if found is None else found
    if is_pointwise(node.operation):
        return expand(node, position, axis, before, after)
    return axis if len(after) == len(before) else None


def _meetings(
    graph: Graph, node: Node, position: int, axis: int, step: int | None, packing: Packing
) -> list[Meeting]:
    found: list[Meeting] = []

    def meets(ref: Ref, place: int, *, contracted: bool = False) -> None:
        found.append(Meeting(node.index, ref, place, contracted, packing))

    contraction = CONTRACTIONS.get(packet(node.operation))
    factors = [node.arguments[p] for p in contraction or () if p < len(node.arguments)]
    after = node.outputs[0].shape if node.outputs else ()
    for other, ref in enumerate(node.inputs):
        if other == position or graph.nodes[ref.node].depends_on_input:
            continue
        shape = graph.spec(ref).shape
        if contraction is not None and _sums_over(node, position, axis, graph):
            place = _contracted_axis(node, other, shape)
            if place is not None and ref in factors:
                meets(ref, place, contracted=True)
        elif step is not None and is_pointwise(node.operation):
            place = step - (len(after) - len(shape))
            if place >= 0 and shape[place] == after[step] and shape[place] > 1:
                meets(ref, place)
        elif (place := _beside(node, graph, position, axis, shape)) is not None:
            meets(ref, place)
    return found


def _beside(
    node: Node, graph: Graph, position: int, axis: int, shape: tuple[int, ...]
) -> int | None:
    """The axis of a tensor that an operator takes for every entry of the followed one."""
    name = packet(node.operation)
    before = graph.spec(node.inputs[position]).shape
    if "layer_norm" in name or "cross_entropy" in name:
        place = axis - (len(before) - len(shape))
    elif "norm" in name or "loss" in name:
        # Normalisation by channel, and the weights of classes in a loss, come as vectors.
        place = 0 if len(shape) == 1 and axis == min(1, len(before) - 1) else -1
    elif name in ("index", "index_select"):
        # An index that puts the entries in another order.
        indexed = len(node.arguments[1]) - 1 if name == "index" else node.arguments[1] % len(before)
        place = 0 if len(shape) == 1 and axis == indexed else -1
    else:
        return None
    return place if place >= 0 and shape[place] == before[axis] else None


def _sums_over(node: Node, position: int, axis: int, graph: Graph) -> bool:
    rule = RULES.get(packet(node.operation), nowhere)
    shape = graph.spec(node.inputs[position]).shape
    return rule(node, position, axis, shape, node.outputs[0].shape) is None


def _contracted_axis(node: Node, other: int, shape: tuple[int, ...]) -> int | None:
    name = packet(node.operation)
    if "convolution" in name:
        return 1 if len(shape) > 1 else None
    if name in ("mm", "addmm", "mv", "addmv", "bmm", "baddbmm"):
        first = node.inputs[-2:][0] == node.inputs[other]
        return len(shape) - 1 if first else max(len(shape) - 2, 0)
    return len(shape) - 1 if shape else None


def _class_by_class(graph: Graph, node: Node, position: int, axis: int) -> int | None:
    """The axis behind a square matrix without parameters (a confusion matrix): one to one."""
    if packet(node.operation) not in ("mm", "addmm", "bmm", "baddbmm") or position + 2 != len(
        node.inputs
    ):
        return None
    other = node.inputs[position + 1]
    square = graph.spec(other).shape[-2:]
    size = graph.spec(node.inputs[position]).shape[axis]
    source = graph.nodes[other.node]
    if source.depends_on_input or source.parameters or square != (size, size):
        return None
    return len(node.outputs[0].shape) - 1


def _through_view(graph: Graph, node: Node, axis: int) -> int | None:
    """The axis of a tensor that is ``axis`` of the view through which it was written."""
    steps: list[Node] = []
    # The tensor may be a view itself, and have been written to before.
    base = node.inputs[0].node
    whole = {base}
    while packet(graph.nodes[base].operation) == "updated":
        base = graph.nodes[base].inputs[0].node
        whole.add(base)
    place = graph.nodes[node.inputs[1].node].inputs[0].node
    while place not in whole and packet(graph.nodes[place].operation) in VIEWS:
        steps.append(graph.nodes[place])
        place = graph.nodes[place].inputs[0].node
    for candidate in range(len(node.outputs[0].shape)):
        found: int | None = candidate
        for step in reversed(steps):
            found = across(graph, step, 0, found) if found is not None else None
        if found == axis:
            return candidate
    return None
