"""What a comparison of two models does not reach, and in what the two differ there."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

import torch

from surgery import tree
from surgery.graph.align import Alignment
from surgery.graph.aten import packet
from surgery.graph.canonical import UNORDERED
from surgery.graph.extras import given_back
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.pieces import KEEPS, MOVES, moved
from surgery.graph.wording import name_of, written
from surgery.operations.seams import produced

# Movements of more numbers than this are not followed.
_LARGEST = 1 << 20
_AS_THEY_ARE = "as they are"


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
        names = _named(alignment, covered)
        ways = [
            Counter(_ways(graph, nodes, known, made))
            for graph, nodes, known, made in zip(graphs, left, listed, names, strict=True)
        ]
        if ways[0] != ways[1]:
            first = next(iter(ways[0] - ways[1] or ways[1] - ways[0]))
            found.append(f"not compared, and in another order in the two: {first[2]} of {first[0]}")
    return (*found, *_moved_apart(graphs, covered, listed))


def _moved_apart(
    graphs: tuple[Graph, Graph], covered: tuple[set[int], set[int]], listed: tuple[set[str], ...]
) -> Iterator[str]:
    """What moves numbers otherwise in one of two models, or takes others of them."""
    sides = [
        dict(_moves(graph, done, _inside(known)))
        for graph, done, known in zip(graphs, covered, listed, strict=True)
    ]
    for place, side in enumerate(("donor", "recipient")):
        for key in sides[place].keys() - sides[1 - place].keys() - {_AS_THEY_ARE}:
            told = sides[place][key]
            yield f"not compared, and only the {side} has it: {told}"


def _inside(known: set[str]) -> set[str]:
    """The modules of tensors that are listed, and the blocks around them."""
    names = [tree.split(address)[0].split(".") for address in known]
    return {".".join(name[:size]) for name in names for size in range(1, len(name) + 1)}


def _moves(graph: Graph, done: set[int], known: set[str]) -> Iterator[tuple[Hashable, str]]:
    """How numbers are moved on the way to what was not compared: in which order, and which."""
    leaves = [leaf.source for leaf in graph.leaves if leaf.source is not None]
    wanted = reached(graph, (source.node for source in leaves)) - done
    reads = [
        (node.module, ref)
        for node in graph.operations
        if node.index in wanted and packet(node.operation) not in MOVES
        for ref in node.inputs
    ]
    for module, ref in [*reads, *(("", source) for source in leaves if source.node in wanted)]:
        way = list[Ref]()
        while graph.nodes[ref.node].role == "operation":
            node = graph.nodes[ref.node]
            if packet(node.operation) not in MOVES or not node.depends_on_input:
                break
            way.append(ref)
            ref = node.inputs[0]
        made = graph.nodes[ref.node]
        if not way or not made.depends_on_input or {module, made.module} <= known:
            continue
        told = " then ".join(
            written(node)
            for each in reversed(way)
            if packet((node := graph.nodes[each.node]).operation) not in KEEPS
        )
        if (key := _taken(graph, ref, way)) is not None:
            yield key, f"{graph.nodes[way[0].node].module or 'the model'} {told}"


def _taken(graph: Graph, start: Ref, way: list[Ref]) -> Hashable | None:
    """Which numbers come out of movements in which order; None where that cannot be said."""
    shape = graph.spec(start).shape
    size = math.prod(shape)
    if max(math.prod(graph.spec(ref).shape) for ref in (start, *way)) > _LARGEST:
        return None
    numbers = torch.arange(size, dtype=torch.int32, device="cpu").view(shape)
    for ref in reversed(way):
        views = moved(graph.nodes[ref.node], numbers)
        found = views[min(ref.output, len(views) - 1)]
        if found is None:
            return None
        numbers = found.contiguous()
    if numbers.numel() == size and bool((numbers.flatten()[1:] > numbers.flatten()[:-1]).all()):
        return _AS_THEY_ARE
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def _left(graph: Graph, done: set[int]) -> Iterator[Node]:
    """The operations on the input that were not compared, and that lead to something."""
    wanted = reached(graph, (leaf.source.node for leaf in graph.leaves if leaf.source is not None))
    wanted -= done
    for node in graph.operations:
        says = node.depends_on_input and given_back(graph, node) is None
        if node.index in wanted and says:
            yield node


def _has(node: Node, known: set[str]) -> bool:
    return any(address in known for addresses in node.parameters for address in addresses)


def _named(
    alignment: Alignment, covered: tuple[set[int], set[int]]
) -> tuple[dict[int, tuple[str, int]], dict[int, tuple[str, int]]]:
    """What was compared by the node that makes it: in both the recipient's name and one number.

    One layer may be one operation here and two there.
    """
    found: tuple[dict[int, tuple[str, int]], dict[int, tuple[str, int]]] = {}, {}
    for a, b in alignment.pairs:
        one, other = alignment.one.cells[a], alignment.other.cells[b]
        if one.node in covered[0] and other.node in covered[1] and other.slots:
            made = produced(alignment.one, a), produced(alignment.other, b)
            if made[0] is not None and made[1] is not None:
                found[0][made[0]] = found[1][made[1]] = other.module or "the model", b
    return found


def _ways(
    graph: Graph, nodes: Iterable[Node], known: set[str], names: Mapping[int, tuple[str, int]]
) -> Iterator[tuple[str, int, str, Hashable]]:
    """What each operation reads: the operation before it, which that is, its own name, the place.

    A layer that is listed is passed over: what stands behind it reads what it reads.
    """
    for node in nodes:
        for place, ref in enumerate(node.inputs):
            before = graph.nodes[ref.node]
            while before.role == "operation" and (
                given_back(graph, before) is not None or _has(before, known)
            ):
                into = [each for each in before.inputs if graph.nodes[each.node].depends_on_input]
                before = graph.nodes[(into or before.inputs)[0].node]
            at = -1 if name_of(node) in UNORDERED else place
            told = written(before) if before.role == "operation" else before.role
            yield *names.get(before.index, (told, -1)), written(node), at
