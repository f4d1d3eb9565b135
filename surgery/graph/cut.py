"""An axis of which an output has the first entries alone: what was padded is left away again."""

from __future__ import annotations

from collections.abc import Mapping

from surgery.graph.aten import packet
from surgery.graph.graph import Graph, Leaf, Ref


def is_cut(graph: Graph, axes: Mapping[Ref, int], leaf: Leaf) -> bool:
    """Whether an axis becomes shorter only by slices from its first entry on.

    Args:
        graph: the recorded forward pass.
        axes: for every value that has the axis, which of its axes it is.
        leaf: the output.

    Example:
        >>> import torch, surgery
        >>> from surgery.graph.axes import follow
        >>> class Padded(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x)[:, :10]
        >>> graph = surgery.record(Padded(8, 16), torch.zeros(2, 8))
        >>> made = next(node for node in graph.operations if node.outputs[0].shape == (2, 16))
        >>> is_cut(graph, follow(graph, Ref(made.index), 1).axes, graph.leaves[0])
        True
    """
    if leaf.source is None or leaf.source not in axes:
        return False
    ref, cuts = leaf.source, 0
    while True:
        node = graph.nodes[ref.node]
        before = next((each for each in node.inputs if each in axes), None)
        if before is None:
            return cuts > 0
        size, former = graph.spec(ref).shape[axes[ref]], graph.spec(before).shape[axes[before]]
        if size != former:
            if (
                packet(node.operation) != "slice"
                or size > former
                or not _from_first(node.arguments)
            ):
                return False
            cuts += 1
        ref = before


def _from_first(arguments: tuple[object, ...]) -> bool:
    """Whether a slice (value, axis, start, end, step) begins at the first entry and skips none."""
    _, _, start, _, step, *_ = (*arguments, None, None, None, None, None)
    return start in (None, 0) and step in (None, 1)
