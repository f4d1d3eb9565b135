"""Where each entry of a value comes from: numbers handed along a graph by what moves data.

An axis can be followed through what keeps it apart (``axes``). Where it is merged with others, as
patches are cut out of an image and laid flat, its entries are numbered, and what only moves data
is carried out on the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, TypeAlias

import torch

from surgery.graph.aten import is_pointwise, operator, packet
from surgery.graph.graph import Graph, Node, Ref

Numbers: TypeAlias = dict[Ref, torch.Tensor]

_SAME = frozenset(
    {"clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "to"}
)
_VIEWED = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
_MOVED = frozenset(
    {
        *("permute", "transpose", "t", "unsqueeze", "squeeze", "select", "slice", "narrow"),
        *("split", "split_with_sizes", "unbind", "chunk", "cat", "stack", "expand", "repeat"),
        *("flip", "roll", "unfold", "im2col", "pixel_unshuffle", "pixel_shuffle"),
        *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
    }
)
# Neighbours are averaged, or one of them is taken: the number stays where all have the same.
_POOLED = frozenset({"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d"})
_NORMED = frozenset(
    {
        *("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "batch_norm"),
        *("_native_batch_norm_legit_no_training", "_batch_norm_with_update", "instance_norm"),
        *("_batch_norm_no_update", "native_layer_norm", "native_group_norm"),
    }
)
_PICKED = frozenset({"index", "_unsafe_index"})
_MADE = frozenset(
    {
        *("new_full", "new_zeros", "new_ones", "new_empty", "zeros_like", "ones_like"),
        *("full_like", "empty_like", "new_empty_strided"),
    }
)


def is_movement(node: Node) -> bool:
    """Whether an operation hands on values as they are, to other places."""
    name = packet(node.operation)
    return name in _SAME or name in _VIEWED or name in _MOVED


def carry(graph: Graph, start: Ref, axis: int, stop: Collection[int] = ()) -> Numbers:
    """Number the entries along one axis of a value, and hand the numbers along.

    Args:
        graph: the recorded forward pass.
        start: the value.
        axis: its axis; entry ``i`` gets the number ``i + 1``.
        stop: nodes not to go through.

    Returns:
        For every value reached by operations that move data, or treat every entry alike, the
        numbers: zero where nothing of ``start`` is, nan where several entries were joined.
    """
    # The caller may be building models inside another default device.
    with torch.device("cpu"), torch.no_grad():
        return _carry(graph, start, axis, stop)


def _carry(graph: Graph, start: Ref, axis: int, stop: Collection[int]) -> Numbers:
    shape = graph.spec(start).shape
    lined = [1] * len(shape)
    lined[axis] = shape[axis]
    first = torch.arange(1, shape[axis] + 1, dtype=torch.float32).reshape(lined)
    first = first.expand(shape).contiguous()
    found: Numbers = {start: first}
    reached = {start.node}
    for node in graph.nodes[start.node + 1 :]:
        if node.index in stop or reached.isdisjoint(ref.node for ref in node.inputs):
            continue
        if not any(ref in found for ref in node.inputs):
            continue
        results = _through(graph, node, found)
        for place, numbers in enumerate(results):
            if place < len(node.outputs) and tuple(numbers.shape) == node.outputs[place].shape:
                found[Ref(node.index, place)] = numbers
                reached.add(node.index)
    return found


def along(numbers: torch.Tensor, axis: int) -> tuple[int, ...] | None:
    """The number of each entry along an axis; None where the others do not agree on it.

    Places that hold nothing (padding) agree with every number.

    Args:
        numbers: as ``carry`` gives them.
        axis: the axis, not negative.
    """
    lines = numbers.movedim(axis, 0).flatten(1)
    if lines.shape[1] == 0 or bool(lines.isnan().any()):
        return None
    high = lines.amax(1)
    rounded = high.round()
    same = (lines == 0) | ((lines - rounded[:, None]).abs() < 1e-3)
    return tuple(int(number) for number in rounded) if bool(same.all()) else None


def _through(graph: Graph, node: Node, found: Numbers) -> list[torch.Tensor]:
    name = packet(node.operation)
    given = [found[ref] for ref in node.inputs if ref in found]
    if name == "updated":
        # What was written through a view was written into the numbers' memory as well.
        return given[:1]
    if name == "copy_":
        return _copied(graph, node, found)
    if name in _MADE:
        return [torch.zeros(node.outputs[0].shape)]
    if name in _SAME or name in _NORMED:
        return given[:1] if node.inputs[0] in found else []
    if name in _VIEWED:
        return [given[0].reshape(node.outputs[0].shape)]
    if name in _MOVED or name in _POOLED or name.startswith("upsample"):
        return _run(graph, node, found)
    if name in _PICKED:
        return _picked(graph, node, found)
    if is_pointwise(node.operation):
        return _joined(node, given)
    return []


def _copied(graph: Graph, node: Node, found: Numbers) -> list[torch.Tensor]:
    into = found.get(node.inputs[0])
    if into is None:
        into = torch.zeros(node.outputs[0].shape)
    source = found.get(node.inputs[1])
    into.copy_(torch.zeros(()) if source is None else source)
    return [into]


def _run(graph: Graph, node: Node, found: Numbers) -> list[torch.Tensor]:
    """Carry out an operation on numbers; what has none is given zeros."""

    def filled(value: Any) -> Any:
        if isinstance(value, Ref):
            numbers = found.get(value)
            return torch.zeros(graph.spec(value).shape) if numbers is None else numbers
        if isinstance(value, tuple):
            return [filled(item) for item in value]
        return value

    try:
        result = operator(node.operation)(
            *map(filled, node.arguments), **{name: filled(value) for name, value in node.keywords}
        )
    except (RuntimeError, TypeError, ValueError, IndexError):
        # An argument that the graph keeps by name only: the numbers end here.
        return []
    listed = result if isinstance(result, tuple | list) else [result]
    return [each for each in listed if isinstance(each, torch.Tensor)]


def _picked(graph: Graph, node: Node, found: Numbers) -> list[torch.Tensor]:
    """Entries picked by index, as resampling does: whichever, where all have one number."""
    numbers, indices = found.get(node.inputs[0]), node.arguments[1]
    if numbers is None or any(ref in found for ref in node.inputs[1:]):
        return []
    for axis, index in enumerate(indices):
        if index is not None and not bool((numbers == numbers.narrow(axis, 0, 1)).all()):
            return []
    firsts = [
        None if index is None else torch.zeros(graph.spec(index).shape, dtype=torch.long)
        for index in indices
    ]
    places = [slice(None) if index is None else index for index in firsts]
    return [numbers[tuple(places)]]


def _joined(node: Node, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Element by element: the numbers that meet must be the same, or one of them zero."""
    shape = node.outputs[0].shape
    if any(math.prod(numbers.shape) > math.prod(shape) for numbers in given):
        return []
    joined, *others = [numbers.expand(shape) for numbers in given]
    for other in others:
        both = (joined != 0) & (other != 0) & (joined != other)
        joined = torch.where(joined == 0, other, joined).masked_fill(both, math.nan)
    return [joined]
