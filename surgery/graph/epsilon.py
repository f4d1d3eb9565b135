"""What is added to the variance of a normalisation, whichever way it is written."""

from __future__ import annotations

from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical
from surgery.graph.folded import STEPS
from surgery.graph.graph import Graph, Node
from surgery.graph.pieces import MOVES
from surgery.graph.wording import settings_of


def epsilon(side: Canonical, number: int) -> float | None:
    """What a normalisation adds to its variance.

    Args:
        side: the cells of a graph.
        number: of a normalisation among them.

    Returns:
        The number; None where it is not written as one.

    Example:
        >>> import torch, surgery
        >>> from surgery.graph.reduce import canonical
        >>> class Frozen(torch.nn.BatchNorm1d):
        ...     def forward(self, x):
        ...         root = (self.running_var + 0.01).sqrt()
        ...         return (x - self.running_mean) / root * self.weight + self.bias
        >>> side = canonical(surgery.record(Frozen(3), torch.zeros(2, 3), train=False))
        >>> [epsilon(side, n) for n, cell in enumerate(side.cells) if cell.kind == "norm"]
        [0.01]
    """
    cell = side.cells[number]
    node = side.graph.nodes[cell.node]
    told = settings_of(node).get("eps")
    if told is not None:
        return float(told)
    variance = {slot.piece.address for slot in cell.slots if slot.role == "variance"}
    pending, seen = [node], set[int]()
    while pending:
        node = pending.pop()
        for source in (side.graph.nodes[ref.node] for ref in node.inputs):
            # What follows the input is no step from statistics to a scale.
            if (
                source.index in seen
                or source.depends_on_input
                or packet(source.operation) not in (STEPS | MOVES)
            ):
                continue
            seen.add(source.index)
            added = [value for value in source.arguments if isinstance(value, int | float)]
            if packet(source.operation) == "add" and added and _held(side.graph, source) & variance:
                return float(added[0])
            pending.append(source)
    return None


def _held(graph: Graph, node: Node) -> set[str]:
    """The addresses of the tensor that an operation has besides a number."""
    source = graph.nodes[node.inputs[0].node]
    while packet(source.operation) in MOVES and source.inputs:
        source = graph.nodes[source.inputs[0].node]
    return {*source.addresses}
