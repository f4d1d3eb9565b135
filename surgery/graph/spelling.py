"""Operations between two cells in one spelling: what computes the same is called the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.pieces import MOVES
from surgery.graph.skeleton import is_floating
from surgery.graph.wording import name_of, settings_of, written

# A gate, and what it is called where what it lets through is its own input.
_GATED: Mapping[str, str] = {"sigmoid": "silu", "hardsigmoid": "hardswish"}


@dataclass(frozen=True)
class Word:
    """What one operation does, or several that are known under one name.

    Attributes:
        name: what it is called.
        nodes: the operations.
    """

    name: str
    nodes: tuple[Node, ...]

    def __str__(self) -> str:
        return written(self.nodes[0]) if len(self.nodes) == 1 else f"{self.name}()"


def spelled(graph: Graph, via: Iterable[int]) -> tuple[Word, ...]:
    """The operations on the way from one cell to the next, each under its shortest name.

    Args:
        graph: what they were recorded in.
        via: their numbers, in order of execution.

    Returns:
        One word for each; what is gated by itself is one, and a table that is looked up row by
        row, in order, is none.

    Example:
        >>> import torch, surgery
        >>> class Gate(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.sigmoid() * x, x.sigmoid() * 2
        >>> graph = surgery.record(Gate(), torch.zeros(1, 2))
        >>> [word.name for word in spelled(graph, [node.index for node in graph.operations])]
        ['silu', 'sigmoid', 'mul']
    """
    words: list[Word] = []
    for node in (graph.nodes[number] for number in via):
        if _is_whole_table(graph, node):
            continue
        before = words[-1] if words else None
        if before is not None and _gates(before, node):
            words[-1] = Word(_GATED[before.name], (*before.nodes, node))
        else:
            words.append(Word(name_of(node), (node,)))
    return tuple(words)


def _gates(before: Word, node: Node) -> bool:
    """Whether a product lets through what its gate was made of."""
    gate = before.nodes[-1]
    if name_of(node) != "mul" or before.name not in _GATED or len(before.nodes) > 1:
        return False
    return set(node.inputs) == {Ref(gate.index), gate.inputs[0]}


def _is_whole_table(graph: Graph, node: Node) -> bool:
    """Whether a lookup gives every row of its table, one after the other."""
    if name_of(node) != "embedding" or len(node.inputs) != 2:
        return False
    table, indices = (graph.spec(ref) for ref in node.inputs)
    sizes = math.prod(node.outputs[0].shape), math.prod(table.shape)
    if sizes[0] != sizes[1] or is_floating(indices.dtype):
        return False
    source = _origin(graph, node.inputs[1])
    if source.role == "operation":
        return name_of(source) == "arange" and settings_of(source).get("start", 0) == 0
    # A table of places: that it counts up is for tables to be compared to say.
    return source.role in ("buffer", "constant") and not node.depends_on_input


def _origin(graph: Graph, ref: Ref) -> Node:
    """Where numbers come from that are only moved."""
    node = graph.nodes[ref.node]
    while node.role == "operation" and name_of(node) in MOVES and len(node.inputs) == 1:
        node = graph.nodes[node.inputs[0].node]
    return node


def unequal(
    one: Sequence[tuple[Word, ...]], other: Sequence[tuple[Word, ...]]
) -> tuple[list[tuple[Word, ...]], list[tuple[Word, ...]]]:
    """Ways from one cell to another, without those that both graphs have.

    Example:
        >>> unequal([(), ()], [()])
        ([()], [])
    """
    left, rest = [], list(other)
    for way in one:
        twin = next((each for each in rest if _said(each) == _said(way)), None)
        if twin is None:
            left.append(way)
        else:
            rest.remove(twin)
    return left, rest


def _said(way: tuple[Word, ...]) -> list[str]:
    return [str(word) for word in way]
