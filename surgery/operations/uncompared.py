"""What a comparison of two models does not reach, and in what the two differ there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator

from surgery.graph.align import Alignment
from surgery.graph.aten import packet
from surgery.graph.canonical import UNORDERED
from surgery.graph.graph import Graph, Node
from surgery.graph.pieces import MOVES
from surgery.graph.recorder import UPDATED
from surgery.graph.wording import name_of, written


def reached(graph: Graph, compared: Iterable[int], begun: Collection[int] = ()) -> set[int]:
    """The nodes that lead to what is compared.

    Args:
        graph: a recorded forward pass.
        compared: its nodes whose results are.
        begun: nodes behind which a comparison begins anew: what leads to these has no say.
    """
    pending, found = list(compared), set[int]()
    while pending:
        number = pending.pop()
        if number in found or number in begun:
            continue
        found.add(number)
        pending += [ref.node for ref in graph.nodes[number].inputs]
    return found


def returned(graph: Graph, path: str) -> int | None:
    """The node that makes an output."""
    sources = (leaf.source for leaf in graph.leaves if leaf.path == path)
    return next((source.node for source in sources if source is not None), None)


def last_of(graph: Graph, module: str) -> int | None:
    """The last node that ran in a module."""
    inside = f"{module}." if module else ""
    found = (
        node.index
        for node in graph.operations
        if node.module == module or node.module.startswith(inside)
    )
    return max(found, default=None)


def beyond(
    alignment: Alignment, covered: tuple[set[int], set[int]], listed: tuple[set[str], set[str]]
) -> tuple[str, ...]:
    """The operations that were not compared and that only one of two models has.

    Nothing says that such an operation does no harm: a person has to look.

    Args:
        alignment: of the graphs.
        covered: the nodes of both that were compared.
        listed: addresses of both whose tensors are said to have no counterpart: their operations
            are not named again.

    Returns:
        Sentences; where both have the same operations in another order, one that says so.
    """
    graphs = alignment.one.graph, alignment.other.graph
    left = [
        [node for node in _left(graph, done) if not _has(node, known)]
        for graph, done, known in zip(graphs, covered, listed, strict=True)
    ]
    found = []
    for place, side in enumerate(("donor", "recipient")):
        others = Counter(map(written, left[1 - place]))
        alike: dict[str, list[str]] = {}
        for node in left[place]:
            if others[written(node)] > 0:
                others[written(node)] -= 1
            else:
                alike.setdefault(written(node), []).append(node.module or "the model")
        for told, modules in alike.items():
            more = f"; and {len(modules) - 1} more like this" if len(modules) > 1 else ""
            found.append(f"not compared, and only the {side} has it: {modules[0]} {told}{more}")
    if not found and any(left):
        ways = [
            Counter(_ways(graph, nodes, known))
            for graph, nodes, known in zip(graphs, left, listed, strict=True)
        ]
        if ways[0] != ways[1]:
            first = next(iter(ways[0] - ways[1] or ways[1] - ways[0]))
            found.append(f"not compared, and in another order in the two: {first[1]} of {first[0]}")
    return tuple(found)


def _left(graph: Graph, done: set[int]) -> Iterator[Node]:
    """The operations on the input that were not compared, and that lead to something."""
    wanted = reached(graph, (leaf.source.node for leaf in graph.leaves if leaf.source is not None))
    wanted -= done
    for node in graph.operations:
        says = node.depends_on_input and node.operation != UPDATED
        if node.index in wanted and says and packet(node.operation) not in MOVES:
            yield node


def _has(node: Node, known: set[str]) -> bool:
    return any(address in known for addresses in node.parameters for address in addresses)


def _ways(
    graph: Graph, nodes: Iterable[Node], known: set[str]
) -> Iterator[tuple[str, str, Hashable]]:
    """What each operation reads: the operation before it, its own name, the place.

    A layer that is listed is passed over: what stands behind it reads what it reads.
    """
    for node in nodes:
        for place, ref in enumerate(node.inputs):
            before = graph.nodes[ref.node]
            while before.role == "operation" and (
                packet(before.operation) in MOVES or _has(before, known)
            ):
                into = [each for each in before.inputs if graph.nodes[each.node].depends_on_input]
                before = graph.nodes[(into or before.inputs)[0].node]
            at = -1 if name_of(node) in UNORDERED else place
            yield written(before) if before.role == "operation" else before.role, written(node), at
