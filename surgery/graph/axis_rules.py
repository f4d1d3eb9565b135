"""What each operator does to one axis of its input: which axis of its output that becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from surgery.graph.aten import CONTRACTIONS
from surgery.graph.graph import Node

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


def _padded(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    # The first axis holds the rows of all samples, and becomes two.
    return axis + len(after) - len(before) if position == 0 and axis else None


def expand(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    """Where an axis is after broadcasting, aligned from the last one."""
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


def nowhere(
    node: Node, position: int, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> int | None:
    """No axis of the input is one of the output."""
    return None


# What may make several axes of one, or one of several.
SPLITTING = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy"})

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(SPLITTING, _view),
    **dict.fromkeys(("t", "t_", "transpose", "transpose_", "transpose_copy"), _transpose),
    **dict.fromkeys(("permute", "permute_copy"), _permute),
    **dict.fromkeys(("unsqueeze", "unsqueeze_"), _unsqueeze),
    **dict.fromkeys(("squeeze", "squeeze_"), _squeeze),
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(("expand", "broadcast_to", "repeat"), expand),
    **dict.fromkeys(
        ("_jagged_to_padded_dense_forward", "_padded_dense_to_jagged_forward"), _padded
    ),
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
    **dict.fromkeys(("nonzero", "embedding", "_trilinear", "_cdist_forward"), nowhere),
}

# Results that share memory with their first argument.
VIEWS = frozenset(
    {
        *("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "unsqueeze"),
        *("squeeze", "select", "slice", "expand", "narrow", "split", "unbind", "alias", "detach"),
    }
)
