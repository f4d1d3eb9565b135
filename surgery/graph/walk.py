"""Walk a graph back from its outputs: the nearest operations that mix features with weights.

Everything here is pure: values in, values out, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from surgery.graph.aten import CONTRACTIONS, is_pointwise, packet
from surgery.graph.axes import follow
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.skeleton import holds_features, is_floating

# As what the graph keeps the object in which a quantised layer has its weight.
PACKED = torch.ScriptObject.__name__

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv"})
_PAIRINGS = frozenset({"mul", "mul_", "sub", "sub_"})
_REDUCTIONS = frozenset({"sum", "mean", "linalg_vector_norm", "norm"})


@dataclass(frozen=True)
class Mixing:
    """An operation that makes new features from data and weights.

    Attributes:
        node: the operation.
        weight: the operand that is made of parameters, or of buffers and plain tensors, alone;
            the operation itself where the weight is packed.
        value: the operation's result, or, for a product that is summed later, the sum's.
        axis: the axis of ``value`` that holds the new features.
        features: how many.
        in_features: over how many features each is summed, where that is one axis.
    """

    node: int
    weight: Ref
    value: Ref
    axis: int
    features: int
    in_features: int

    @property
    def packed(self) -> bool:
        """Whether no tensor holds the weight: quantised layers keep it in an object."""
        return self.weight.node == self.node


def mixing(graph: Graph, node: Node) -> Mixing | None:
    """What a node mixes, or None where it makes no new features from weights."""
    found = _mixing(graph, node)
    if found is None or found.packed or graph.nodes[found.weight.node].parameters:
        return found
    return None if _is_followed_through(graph, node, found) else found


def _mixing(graph: Graph, node: Node) -> Mixing | None:
    """As ``mixing``, where every matrix of buffers counts as a weight."""
    if node.role != "operation" or not node.depends_on_input:
        return None
    if PACKED in node.arguments:
        return _packed(graph, node)
    name = packet(node.operation)
    if name in CONTRACTIONS:
        return _contraction(graph, node, name)
    if not node.operation.startswith(("aten.", "prims.", "surgery.")):
        return _foreign(graph, node)
    if is_pointwise(node.operation):
        return _expansion(graph, node)
    if name in _REDUCTIONS:
        return _summed_product(graph, node)
    return None


def weight_sources(graph: Graph, ref: Ref) -> tuple[Node, ...]:
    """The parameters, buffers and attributes that a weight operand is computed from, in order."""
    found: dict[int, Node] = {}
    pending = [ref.node]
    seen: set[int] = set()
    while pending:
        index = pending.pop()
        if index in seen:
            continue
        seen.add(index)
        node = graph.nodes[index]
        if node.role in ("parameter", "buffer", "constant") and node.addresses:
            found[index] = node
        pending.extend(source.node for source in node.inputs)
    return tuple(found[index] for index in sorted(found))


def frontier(graph: Graph, start: Ref) -> tuple[Mixing, ...]:
    """The nearest mixing operations behind a value, in order of execution."""
    return _frontier(graph, start, mixing)


def _frontier(
    graph: Graph, start: Ref, mixes: Callable[[Graph, Node], Mixing | None]
) -> tuple[Mixing, ...]:
    found: dict[int, Mixing] = {}
    pending = [start.node]
    seen: set[int] = set()
    while pending:
        index = pending.pop()
        if index in seen:
            continue
        seen.add(index)
        node = graph.nodes[index]
        if not node.depends_on_input:
            continue
        mixed = mixes(graph, node)
        if mixed is not None:
            found[index] = mixed
            continue
        pending.extend(ref.node for ref in node.inputs)
    return tuple(found[index] for index in sorted(found))


def ancestors(graph: Graph, start: int) -> frozenset[int]:
    """Every node that a node's result was computed from, itself left out.

    Integers are choices (a winning class that a decoder reads back), and end the walk.
    """
    seen: set[int] = set()
    pending = [start]
    while pending:
        for ref in graph.nodes[pending.pop()].inputs:
            if ref.node not in seen and holds_features(graph.spec(ref).dtype):
                seen.add(ref.node)
                pending.append(ref.node)
    return frozenset(seen)


def feeding(graph: Graph, mixings: Iterable[Mixing]) -> Iterator[tuple[Mixing, Mixing]]:
    """The pairs of which the first feeds the second."""
    every = list(mixings)
    for second in every if len(every) > 1 else ():
        above = ancestors(graph, second.node)
        for first in every:
            if first.node in above:
                yield first, second


def _is_weight(graph: Graph, ref: Ref) -> bool:
    node = graph.nodes[ref.node]
    return not node.depends_on_input and bool(node.parameters)


def _is_fixed(graph: Graph, ref: Ref) -> bool:
    """Whether an operand is a matrix of floating numbers made of no parameter."""
    node, spec = graph.nodes[ref.node], graph.spec(ref)
    if node.depends_on_input or node.parameters or len(spec.shape) < 2:
        return False
    if not is_floating(spec.dtype):
        return False
    return any(len(source.outputs[0].shape) > 1 for source in weight_sources(graph, ref))


def _is_table(graph: Graph, ref: Ref) -> bool:
    """Whether such an operand differs along two axes: prototypes, and no mean of each channel."""
    return _is_fixed(graph, ref) and sum(size > 1 for size in graph.spec(ref).shape) > 1


def _is_followed_through(graph: Graph, node: Node, mixed: Mixing) -> bool:
    """Whether buffers only rework what a layer behind them made.

    A filter of each channel, a resampling of positions (the features go past it), a matrix
    class by class: these are no heads, and the axis of the features is followed through them.
    """
    name = packet(node.operation)
    if name not in CONTRACTIONS:
        return False
    factors = [ref for place in CONTRACTIONS[name] if (ref := _factor(node, place)) is not None]
    (data,) = [ref for ref in factors if ref != mixed.weight]
    first = data == factors[0] or name not in _PRODUCTS
    if first:
        data = _unmerged(graph, data)
    shape, rank = graph.spec(mixed.weight).shape, len(graph.spec(data).shape)
    if "convolution" in name:
        contracted = 1
        if len(node.arguments) > 8 and node.arguments[8] == graph.spec(data).shape[1]:
            return True
    else:
        contracted = rank - 1 if first else max(rank - 2, 0)
    square = name in _PRODUCTS and shape[-1] == shape[-2]
    summed = passed = False
    for behind in _frontier(graph, data, _mixing):
        axis = follow(graph, behind.value, behind.axis).axes.get(data)
        if axis == contracted and square and behind.features == mixed.features:
            return True
        summed = summed or axis == contracted
        passed = passed or axis not in (None, contracted)
    return passed and not summed


def _unmerged(graph: Graph, ref: Ref) -> Ref:
    """The value before its axes in front of the last were merged, as matmul does."""
    node = graph.nodes[ref.node]
    while packet(node.operation) in ("view", "_unsafe_view", "clone"):
        before = graph.spec(node.inputs[0]).shape
        if before[-1:] != node.outputs[0].shape[-1:]:
            break
        ref = node.inputs[0]
        node = graph.nodes[ref.node]
    return ref


def _factor(node: Node, place: int) -> Ref | None:
    value = node.arguments[place] if place < len(node.arguments) else None
    return value if isinstance(value, Ref) else None


def _contraction(graph: Graph, node: Node, name: str) -> Mixing | None:
    if name == "_trilinear":
        return _trilinear(graph, node)
    places = CONTRACTIONS[name]
    factors = [ref for place in places if (ref := _factor(node, place)) is not None]
    if len(factors) != 2:
        return None
    first, second = factors
    weight_second = _is_weight(graph, second)
    if weight_second is _is_weight(graph, first):
        weight_second = _is_fixed(graph, second)
        if _is_weight(graph, first) or weight_second is _is_fixed(graph, first):
            return None
    weight = second if weight_second else first
    if "convolution" in name:
        return _convolution(graph, node, weight)
    shape = graph.spec(weight).shape
    out = node.outputs[0].shape
    in_features = graph.spec(first).shape[-1]
    if len(shape) == 1:
        axis = 0 if len(out) == 1 and len(graph.spec(second).shape) == 1 else len(out)
        return Mixing(node.index, weight, Ref(node.index), axis, 1, in_features)
    axis = len(out) - 1 if weight_second else len(out) - 2
    if len(out) == 1:
        axis = 0
    batched = len(out) == 3 and out[axis] == 1 and 1 < shape[0] == out[0]
    if batched and not _is_repeated(graph, weight):
        # One weight vector for each entry of the batch of matrices: that is the feature axis.
        axis = 0
    return Mixing(node.index, weight, Ref(node.index), axis, out[axis], in_features)


def _is_repeated(graph: Graph, ref: Ref) -> bool:
    """Whether the first axis of an operand is one matrix over and over, as matmul expands it."""
    node = graph.nodes[ref.node]
    while packet(node.operation) in ("view", "_unsafe_view", "expand") and node.inputs:
        before = graph.spec(node.inputs[0]).shape
        after = node.outputs[0].shape
        if packet(node.operation) == "expand":
            return len(before) < len(after) or before[0] < after[0]
        if before != after:
            return False
        node = graph.nodes[node.inputs[0].node]
    return False


def _convolution(graph: Graph, node: Node, weight: Ref) -> Mixing | None:
    data = graph.spec(node.inputs[0]).shape
    features = node.outputs[0].shape[1]
    return Mixing(node.index, weight, Ref(node.index), 1, features, data[1])


def _trilinear(graph: Graph, node: Node) -> Mixing | None:
    weights = [ref for ref in node.inputs if _is_weight(graph, ref)]
    if len(weights) != 1:
        return None
    out = node.outputs[0].shape
    data = [ref for ref in node.inputs if ref != weights[0]]
    in_features = graph.spec(data[0]).shape[-1] if data else 1
    return Mixing(node.index, weights[0], Ref(node.index), len(out) - 1, out[-1], in_features)


def _foreign(graph: Graph, node: Node) -> Mixing | None:
    """A custom operator that reads a matrix of weights is taken to mix."""
    weights = [
        ref for ref in node.inputs if len(graph.spec(ref).shape) > 1 and _is_weight(graph, ref)
    ]
    if not weights or not node.outputs or not node.outputs[0].shape:
        return None
    out = node.outputs[0].shape
    sizes = graph.spec(weights[0]).shape
    axis = next((a for a in reversed(range(len(out))) if out[a] in sizes), len(out) - 1)
    return Mixing(node.index, weights[0], Ref(node.index), axis, out[axis], sizes[-1])


def _packed(graph: Graph, node: Node) -> Mixing | None:
    """A quantised layer: its features come last, those of a convolution second."""
    if not node.inputs or not node.outputs:
        return None
    data, out = graph.spec(node.inputs[0]), node.outputs[0].shape
    axis = 1 if "conv" in packet(node.operation) else len(out) - 1
    if not holds_features(data.dtype) or not 0 <= axis < min(len(out), len(data.shape)):
        return None
    here = Ref(node.index)
    return Mixing(node.index, here, here, axis, out[axis], data.shape[axis])


def _expansion(graph: Graph, node: Node) -> Mixing | None:
    """Data broadcast against weights along an axis that only the weights have."""
    fixed = packet(node.operation) in _PAIRINGS
    weights = [
        ref for ref in node.inputs if _is_weight(graph, ref) or (fixed and _is_table(graph, ref))
    ]
    data = [ref for ref in node.inputs if graph.nodes[ref.node].depends_on_input]
    if len(weights) != 1 or not data or not node.outputs:
        return None
    out = node.outputs[0].shape
    inner = graph.spec(weights[0]).shape
    outer = graph.spec(data[0]).shape
    for axis, size in enumerate(out):
        place = axis - (len(out) - len(inner))
        other = axis - (len(out) - len(outer))
        if size > 1 and place >= 0 and inner[place] == size and (other < 0 or outer[other] == 1):
            count = 1
            for length in inner:
                count *= length
            return Mixing(
                node.index, weights[0], Ref(node.index), axis, size, max(count // size, 1)
            )
    return None


def _summed_product(graph: Graph, node: Node) -> Mixing | None:
    """A product with weights, summed over an axis along which the weights differ."""
    if not node.inputs:
        return None
    product = graph.nodes[node.inputs[0].node]
    if packet(product.operation) not in _PAIRINGS:
        return None
    weights = [ref for ref in product.inputs if _is_weight(graph, ref) or _is_table(graph, ref)]
    data = [ref for ref in product.inputs if graph.nodes[ref.node].depends_on_input]
    if len(weights) != 1 or not data:
        return None
    shape = product.outputs[0].shape
    inner = graph.spec(weights[0]).shape
    gone = _reduced(node, len(shape))
    for dim in gone:
        place = dim - (len(shape) - len(inner))
        if place >= 0 and inner[place] > 1 and inner[place] == shape[dim]:
            out = node.outputs[0].shape
            kept = [a for a in range(len(shape)) if a not in gone]
            lined = [
                position
                for position, a in enumerate(kept)
                if (p := a - (len(shape) - len(inner))) >= 0 and inner[p] > 1
            ]
            axis = lined[-1] if lined else len(out)
            features = out[axis] if axis < len(out) else 1
            return Mixing(node.index, weights[0], Ref(node.index), axis, features, inner[place])
    return None


def _reduced(node: Node, rank: int) -> list[int]:
    place = 2 if "norm" in node.operation else 1
    dims = node.arguments[place] if place < len(node.arguments) else None
    if dims is None or dims == ():
        return list(range(rank))
    return [dim % rank for dim in (dims if isinstance(dims, tuple) else (dims,))]
