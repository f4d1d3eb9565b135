"""Follow one axis of a value through a graph: where a class axis goes, and what meets it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from typing import Any

import torch

from surgery.graph.graph import Graph, Node, Ref


@dataclass(frozen=True)
class Meeting:
    """A tensor without data (a bias, a temperature, a weight) that meets the followed axis.

    Attributes:
        node: the operation in which they meet.
        operand: the tensor.
        axis: the axis of the operand that lies on the followed one, or is contracted with it.
        contracted: True where the operation sums over the axis (a layer that reads classes).
    """

    node: int
    operand: Ref
    axis: int
    contracted: bool


@dataclass(frozen=True)
class Track:
    """Where an axis went.

    Attributes:
        axes: for every value that still has the axis, which of its axes it is.
        meetings: what it met on the way.
        lost: nodes in which it could not be followed further (merged, reduced, contracted).
    """

    axes: Mapping[Ref, int]
    meetings: tuple[Meeting, ...]
    lost: tuple[int, ...]


# Pointwise as well, and not tagged so.
_UNTAGGED = frozenset({"copy_", "copy", "dropout", "_prelu_kernel", "masked_fill", "masked_fill_"})


@cache
def operator(name: str) -> Any:
    """The operator of a node's name, or None: ``aten.add.Tensor``."""
    parts = name.split(".")
    found: Any = torch.ops
    for part in parts:
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


@cache
def is_pointwise(name: str) -> bool:
    """Whether an operator works element by element, with broadcasting."""
    tags = getattr(operator(name), "tags", ())
    return torch.Tag.pointwise in tags or packet(name) in _UNTAGGED


def is_known(name: str) -> bool:
    """Whether what an operation does to an axis is known, and not guessed from shapes."""
    known = name.startswith("surgery.") or is_pointwise(name)
    return known or packet(name) in _RULES or packet(name) in CONTRACTIONS


def packet(name: str) -> str:
    """The operator's name without namespace and overload: ``aten.add.Tensor`` is ``add``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else name


def follow(graph: Graph, start: Ref, axis: int) -> Track:
    """Follow an axis of one value forward through everything that depends on it.

    Args:
        graph: the recorded forward pass.
        start: the value.
        axis: its axis, not negative.

    Returns:
        Every value that has the axis, and everything that met it.
    """
    axes: dict[Ref, int] = {start: axis}
    meetings: list[Meeting] = []
    lost: list[int] = []
    pending = list(graph.users[start.node])
    seen = set(pending)
    while pending:
        node = graph.nodes[heappop(pending)]
        found: int | None = None
        for position, ref in enumerate(node.inputs):
            if ref not in axes:
                continue
            step = _step(graph, node, position, axes[ref])
            meetings += _meetings(graph, node, position, axes[ref], step)
            if step is None:
                lost.append(node.index)
            elif found is None:
                found = step
        if found is not None:
            for output, spec in enumerate(node.outputs):
                if found < len(spec.shape):
                    axes[Ref(node.index, output)] = found
            for user in graph.users[node.index]:
                if user not in seen:
                    seen.add(user)
                    heappush(pending, user)
    return Track(axes, tuple(meetings), tuple(lost))


def _step(graph: Graph, node: Node, position: int, axis: int) -> int | None:
    """The axis of the node's output that is ``axis`` of its input, or None where it is lost."""
    before = graph.spec(node.inputs[position]).shape
    after = node.outputs[0].shape if node.outputs else ()
    name = packet(node.operation)
    if name == "updated" and position == 1:
        return _through_view(graph, node, axis)
    rule = _RULES.get(name)
    if rule is not None:
        found = rule(node, position, axis, before, after)
        return _class_by_class(graph, node, position, axis) if found is None else found
    if is_pointwise(node.operation):
        return _expand(node, position, axis, before, after)
    return axis if len(after) == len(before) else None


def _meetings(
    graph: Graph, node: Node, position: int, axis: int, step: int | None
) -> list[Meeting]:
    found = []
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
                found.append(Meeting(node.index, ref, place, contracted=True))
        elif step is not None and is_pointwise(node.operation):
            place = step - (len(after) - len(shape))
            if place >= 0 and shape[place] == after[step] and shape[place] > 1:
                found.append(Meeting(node.index, ref, place, contracted=False))
        elif (place := _beside(node, graph, position, axis, shape)) is not None:
            found.append(Meeting(node.index, ref, place, contracted=False))
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
    rule = _RULES.get(packet(node.operation), _nowhere)
    shape = graph.spec(node.inputs[position]).shape
    return rule(node, position, axis, shape, node.outputs[0].shape) is None


# Operators that sum over features, and where their two factors stand among the arguments.
CONTRACTIONS: Mapping[str, tuple[int, int]] = {
    "mm": (0, 1),
    "addmm": (1, 2),
    "_addmm_activation": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "dot": (0, 1),
    "vdot": (0, 1),
    "linear": (0, 1),
    "mkldnn_linear": (0, 1),
    "convolution": (0, 1),
    "_convolution": (0, 1),
    "mkldnn_convolution": (0, 1),
    "cudnn_convolution": (0, 1),
    "miopen_convolution": (0, 1),
    "convolution_overrideable": (0, 1),
    "_trilinear": (0, 1),
    "_cdist_forward": (0, 1),
    "_euclidean_dist": (0, 1),
    "_int_mm": (0, 1),
    "_scaled_mm": (0, 1),
}


def _contracted_axis(node: Node, other: int, shape: tuple[int, ...]) -> int | None:
    name = packet(node.operation)
    if "convolution" in name:
        return 1 if len(shape) > 1 else None
    if name in ("mm", "addmm", "mv", "addmv", "bmm", "baddbmm"):
        first = node.inputs[-2:][0] == node.inputs[other]
        return len(shape) - 1 if first else max(len(shape) - 2, 0)
    return len(shape) - 1 if shape else None


Rule = Callable[[Node, int, int, tuple[int, ...], tuple[int, ...]], int | None]


def _view(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    size = before[axis]
    ahead = math.prod(before[:axis])
    behind = math.prod(before[axis + 1 :])
    for candidate, length in enumerate(after):
        same = length == size and math.prod(after[:candidate]) == ahead
        if same and math.prod(after[candidate + 1 :]) == behind:
            return candidate
    return None


def _keyword(node: Node, place: int, name: str, default: Any) -> Any:
    if place < len(node.arguments):
        return node.arguments[place]
    return dict(node.keywords).get(name, default)


def _transpose(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    rank = len(before)
    if rank < 2:
        return axis
    first, second = (0, 1) if len(node.arguments) < 3 else node.arguments[1:3]
    swapped: dict[int, int] = {first % rank: second % rank, second % rank: first % rank}
    return swapped.get(axis, axis)


def _permute(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dims: tuple[int, ...] = node.arguments[1]
    return [dim % len(before) for dim in dims].index(axis)


def _unsqueeze(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dim: int = node.arguments[1] % len(after)
    return axis + 1 if dim <= axis else axis


def _squeeze(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dims = _dims(_keyword(node, 1, "dim", None), len(before))
    gone = {dim for dim in dims if before[dim] == 1}
    return None if axis in gone else axis - sum(dim < axis for dim in gone)


def _select(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dim = _keyword(node, 1, "dim", 0) % len(before)
    return None if dim == axis else axis - (dim < axis)


def _expand(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    found = axis + len(after) - len(before)
    # One entry that is broadcast against many is no axis of the result.
    return found if before[axis] in (after[found], 0) or after[found] == 0 else None


def _stack(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dim = _keyword(node, 1, "dim", 0) % len(after)
    return axis + 1 if dim <= axis else axis


def _reduce(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dims = _dims(_keyword(node, 1, "dim", None), len(before))
    if axis in dims:
        return None
    kept = len(after) == len(before)
    return axis if kept else axis - sum(dim < axis for dim in dims)


def _dims(value: Any, rank: int) -> frozenset[int]:
    if value is None or value == ():
        return frozenset(range(rank))
    values = value if isinstance(value, tuple) else (value,)
    return frozenset(dim % rank for dim in values if isinstance(dim, int)) if rank else frozenset()


def _reduce_one(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    return _reduce(node, position, axis, before, after) if len(node.arguments) > 1 else None


def _vector_norm(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dims = _dims(_keyword(node, 2, "dim", None), len(before))
    return None if axis in dims else axis - (0 if len(after) == len(before) else _below(dims, axis))


def _below(dims: frozenset[int], axis: int) -> int:
    return sum(dim < axis for dim in dims)


def _matrix(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    factors = len(node.inputs) - 2
    if position < factors:
        return axis + len(after) - len(before)
    if position == factors:
        return None if axis == len(before) - 1 else axis
    if axis == len(before) - 1 and len(before) > 1:
        return len(after) - 1
    return axis if axis < len(before) - 2 else None


def _convolution(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    return axis if position == 0 and axis != 1 else None


def _index(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    indices = node.arguments[1]
    first = next((i for i, index in enumerate(indices) if index is not None), 0)
    if position > 0:
        return None
    if axis == first == len(indices) - 1 and before[axis] == after[axis]:
        # The same entries in another order, where the index is a vector.
        return axis if len(before) == len(after) else None
    if any(index is None for index in indices[first:]):
        return None
    if axis < first:
        return axis
    return None if axis < len(indices) else axis + len(after) - len(before)


def _topk(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dim = _keyword(node, 2, "dim", -1) % len(before) if before else 0
    return None if dim == axis else axis


def _unfold(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dim = node.arguments[1] % len(before) if before else 0
    return None if dim == axis else axis


def _pick(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    dim = node.arguments[1] % len(before) if before else 0
    if position > 0 or (dim == axis and before[axis] != after[axis]):
        return None
    return axis


def _index_put(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    if position == 0:
        return axis
    written = node.inputs[position] == node.arguments[2]
    return axis + len(after) - len(before) if written else None


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
    place = graph.nodes[node.inputs[1].node].inputs[0].node
    while packet(graph.nodes[place].operation) in _VIEWS:
        steps.append(graph.nodes[place])
        place = graph.nodes[place].inputs[0].node
    for candidate in range(len(node.outputs[0].shape)):
        found: int | None = candidate
        for step in reversed(steps):
            found = _step(graph, step, 0, found) if found is not None else None
        if found == axis:
            return candidate
    return None


def _nowhere(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    return None


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy"), _view),
    **dict.fromkeys(("t", "transpose", "transpose_copy"), _transpose),
    **dict.fromkeys(("permute", "permute_copy"), _permute),
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("squeeze", "squeeze_"), _squeeze),
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(("expand", "broadcast_to", "repeat"), _expand),
    **dict.fromkeys(("index_select", "gather"), _pick),
    "stack": _stack,
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "logsumexp", "prod", "var", "std", "any", "all"), _reduce
    ),
    **dict.fromkeys(("max", "min", "argmax", "argmin", "median", "mode", "nanmedian"), _reduce_one),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _vector_norm),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"), _matrix),
    **dict.fromkeys([name for name in CONTRACTIONS if "convolution" in name], _convolution),
    "index": _index,
    **dict.fromkeys(("index_put", "index_put_", "_index_put_impl_"), _index_put),
    "topk": _topk,
    "unfold": _unfold,
    **dict.fromkeys(("nonzero", "embedding", "_trilinear", "_cdist_forward"), _nowhere),
}

# Results that share memory with their first argument.
_VIEWS = frozenset(
    {
        *("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "unsqueeze"),
        *("squeeze", "select", "slice", "expand", "narrow", "split", "unbind", "alias", "detach"),
    }
)
