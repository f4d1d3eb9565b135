"""Features that a model gives out and goes on with: what attention keeps for the next call."""

from __future__ import annotations

from surgery.graph.aten import CONTRACTIONS, packet
from surgery.graph.graph import Graph, Leaf
from surgery.graph.walk import Mixing, ancestors, frontier, mixing

# What makes likelihoods of scores.
_LIKELIHOODS = frozenset({"_softmax", "softmax", "sigmoid", "_log_softmax", "log_softmax"})


def is_read_on(graph: Graph, made: Mixing, leaf: Leaf, *, split: bool) -> bool:
    """Whether the layers behind another output read what makes this one.

    Scores may be read as well, by a layer that refines them. What is kept for the next call is
    the keys and values of attention: they are multiplied with other features of the data, as they
    are. A view that splits features has many axes, of which one has any number now and then: of
    that, any layer is enough.

    Args:
        graph: the recorded forward pass.
        made: what makes the output.
        leaf: the output.
        split: whether a part of the features alone is an axis of it.
    """
    read = {made.node} if split else _attended(graph, made)
    return bool(read) and any(
        not read.isdisjoint(ancestors(graph, behind.node))
        for other in graph.leaves
        if other.source is not None and other != leaf
        for behind in frontier(graph, other.source)
    )


def _attended(graph: Graph, made: Mixing) -> set[int]:
    """The products of features with others of the data: scores are made likelihoods before."""
    found: set[int] = set()
    pending, seen = list(graph.users[made.node]), set[int]()
    while pending:
        index = pending.pop()
        node = graph.nodes[index]
        name = packet(node.operation)
        if index in seen or name in _LIKELIHOODS:
            continue
        seen.add(index)
        both = sum(graph.nodes[ref.node].depends_on_input for ref in node.inputs) > 1
        if both and (name in CONTRACTIONS or "scaled_dot_product" in name):
            found.add(index)
        elif mixing(graph, node) is None:
            pending += graph.users[index]
    return found
