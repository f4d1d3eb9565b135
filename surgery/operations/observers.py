"""Buffers with one entry a class that only an operator of unknown semantics ties to the weight.

Training with simulated quantisation observes every row of a weight, in operators that write into
such buffers and check no shape: with rows of another number they write past the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from surgery.errors import PlanError
from surgery.graph.axes import is_known
from surgery.graph.graph import Graph, Node
from surgery.graph.walk import weight_sources
from surgery.heads import Head
from surgery.operations.follow import PerClass, weight_axis
from surgery.survey import Site, Survey


def check_observers(known: Survey, head: Head, items: Sequence[PerClass]) -> None:
    """Refuse a head whose weight meets per-class buffers in an operator that nobody knows.

    Args:
        known: the recordings.
        head: the head to be resized.
        items: the tensors known to follow it.

    Raises:
        PlanError: there are such buffers.
    """
    following = {address for item in items for address in item.addresses}
    found: dict[str, str] = {}
    for site in known.sites[head.address]:
        for node, buffer in _observed(known.graphs[site.mode], site):
            if following.isdisjoint(buffer.addresses):
                found.setdefault(buffer.addresses[0], node.operation)
    if found:
        raise PlanError(
            f"the weight of {head.address or 'the model itself'!r} carries observers with an "
            "entry for each class, and nothing says how they would follow",
            where=", ".join(found),
            expected="a head without per-channel observers",
            found=f"read by {', '.join(dict.fromkeys(found.values()))}",
            fix="before the observers are put in (prepare_qat): surgery.replace_head(model, ...), "
            "then prepare; or convert the model first",
        )


def _observed(graph: Graph, site: Site) -> Iterator[tuple[Node, Node]]:
    """The operators on the weight's way that are not understood, each with such a buffer."""
    rows = graph.spec(site.mixing.weight).shape[weight_axis(graph, site.mixing)]
    for node in _way(graph, site.mixing.weight.node):
        if node.role != "operation" or is_known(node.operation):
            continue
        shapes = [graph.spec(ref).shape for ref in node.inputs]
        if not any(len(shape) > 1 and rows in shape for shape in shapes):
            continue
        for ref, shape in zip(node.inputs, shapes, strict=True):
            for source in weight_sources(graph, ref) if shape == (rows,) else ():
                if source.role != "parameter" and source.outputs[0].shape == (rows,):
                    yield node, source


def _way(graph: Graph, end: int) -> Iterator[Node]:
    """Everything that a weight operand is computed from."""
    pending, seen = [end], {end}
    while pending:
        node = graph.nodes[pending.pop()]
        yield node
        fresh = {ref.node for ref in node.inputs} - seen
        seen |= fresh
        pending.extend(fresh)
