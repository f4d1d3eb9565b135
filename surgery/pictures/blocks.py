"""A recorded graph folded to what a person can take in: blocks, and the tensors between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, TypeAlias

from surgery import tree
from surgery.graph.aten import packet
from surgery.graph.graph import Graph, Node, Spec

Kind: TypeAlias = Literal["input", "module", "operations", "output"]
Depth: TypeAlias = "int | Literal['operations']"

# More outputs of one block than these are drawn as one.
_OUTPUTS = 6


@dataclass(frozen=True, slots=True)
class Block:
    """What is drawn as one box.

    Attributes:
        kind: a ``module`` with all that runs inside it; ``operations`` that a module does itself
            between those that it calls; an ``input`` or an ``output`` of the model.
        address: of the module, ``""`` for the root; the path of an input or output.
        operations: what runs, in order, by the short names of aten.
        parameters: those it consumes, each with all its addresses.
        elements: how many numbers they are.
        flops: floating-point operations.
        marks: what is special about it.
        made: shapes and dtypes of an input or output.
        repeats: how many blocks one after the other it stands for.
        last: the address of the last of them.
        call: which call of the module it is, where there are several, and how many.
    """

    kind: Kind
    address: str
    operations: tuple[str, ...] = ()
    parameters: tuple[tuple[str, ...], ...] = ()
    elements: int = 0
    flops: int = 0
    marks: tuple[str, ...] = ()
    made: tuple[Spec, ...] = ()
    repeats: int = 1
    last: str = ""
    call: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class Edge:
    """What one block makes and another reads.

    Attributes:
        source: the place of the first in ``Sketch.blocks``.
        target: the place of the second, which comes later.
        specs: shapes and dtypes of the tensors.
    """

    source: int
    target: int
    specs: tuple[Spec, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Blocks of one module, to be drawn in a frame.

    Attributes:
        address: of the module.
        members: places in ``Sketch.blocks``.
        repeats: how many modules one after the other it stands for.
        last: the address of the last of them.
    """

    address: str
    members: tuple[int, ...]
    repeats: int = 1
    last: str = ""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is to be drawn: blocks in order of execution, edges, groups, outer ones first."""

    blocks: tuple[Block, ...]
    edges: tuple[Edge, ...]
    groups: tuple[Group, ...] = ()


Marks: TypeAlias = Callable[[Sequence[tuple[str, ...]], str], tuple[str, ...]]


def deepest(graph: Graph) -> int:
    """How many levels of modules the operations of a graph lie in."""
    return max((_depth(node.module) for node in _drawn(graph)), default=0)


def sketch(graph: Graph, depth: Depth, marks: Marks) -> Sketch:
    """Fold a graph to a number of levels.

    Args:
        graph: as recorded.
        depth: modules at this level are drawn as one block with all inside them; those above it
            by what they do themselves. ``"operations"`` for a block each.
        marks: what is special about a block, by the parameters it consumes and its address.

    Returns:
        Blocks and edges. What does not depend on the input (constants, a transposed weight) is
        part of what reads it. Every edge leads from an earlier block to a later one, since a
        block is a stretch of the execution: a module that is called twice is two blocks.

    Example:
        >>> import torch, surgery
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> found = sketch(surgery.record(net, torch.zeros(2, 3)), 1, lambda *_: ())
        >>> [(block.kind, block.address) for block in found.blocks]
        [('input', 'args[0]'), ('module', '0'), ('module', '1'), ('output', 'output')]
    """
    drawn = _drawn(graph)
    above = {tree.split(prefix)[0] for node in drawn for prefix in _prefixes(node.module) if prefix}
    runs = [
        (key, list(run))
        for key, run in groupby(drawn, key=lambda node: _key(node, depth, node.module in above))
    ]
    times = Counter(key for key, _ in runs)
    inputs = _inputs(graph, drawn)
    elements = _elements(graph)
    blocks = [Block("input", "".join(node.addresses[:1]), made=node.outputs) for node in inputs]
    home = {node.index: place for place, node in enumerate(inputs)}
    for key, run in runs:
        home |= dict.fromkeys((node.index for node in run), len(blocks))
        own = depth == "operations" or key == (run[0].module, True)
        # What comes in several stretches is told apart by what ran in each.
        address = _common(run) if own or times[key] > 1 else _named(run, depth)
        blocks.append(_block(run, own, address, elements, marks))
    between: dict[tuple[int, int], dict[Spec, None]] = {}
    for node in drawn:
        for ref in node.inputs:
            source, target = home.get(ref.node), home[node.index]
            if source is not None and source != target:
                between.setdefault((source, target), {})[graph.spec(ref)] = None
    _add_outputs(graph, home, blocks, between)
    edges = tuple(Edge(*ends, tuple(specs)) for ends, specs in sorted(between.items(), key=_ends))
    return Sketch(_counted(blocks), edges)


def _ends(item: tuple[tuple[int, int], object]) -> tuple[int, int]:
    return item[0]


def _drawn(graph: Graph) -> list[Node]:
    """The operations on the input; all of them where there are none."""
    every = list(graph.operations)
    return [node for node in every if node.depends_on_input] or every


def _inputs(graph: Graph, drawn: Iterable[Node]) -> list[Node]:
    read = {ref.node for node in drawn for ref in node.inputs}
    return [node for node in graph.nodes if node.role == "input" and node.index in read]


def _depth(address: str) -> int:
    return address.count(".") + 1 if address else 0


def _prefixes(address: str) -> list[str]:
    parts = address.split(".") if address else []
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def _key(node: Node, depth: Depth, above: bool) -> object:
    """Operations one after the other with the same key are one block."""
    if depth == "operations":
        return node.index
    if _depth(node.module) >= depth:
        return _prefixes(node.module)[depth], False
    return node.module, above


def _common(run: Sequence[Node]) -> str:
    """The innermost module that all operations of a run lie in."""
    shared = set.intersection(*(set(_prefixes(node.module)) for node in run))
    return max(shared, key=len)


def _named(run: Sequence[Node], depth: Depth) -> str:
    """The module at the depth that was asked for, or the one deeper down that does it all."""
    modules = {node.module for node in run}
    found = _prefixes(run[0].module)
    return found[-1] if len(modules) == 1 else found[min(int(depth), len(found) - 1)]


def _block(
    run: Sequence[Node],
    own: bool,
    address: str,
    elements: dict[tuple[str, ...], int],
    marks: Marks,
) -> Block:
    parameters = tuple(dict.fromkeys(found for node in run for found in node.parameters))
    return Block(
        "operations" if own else "module",
        address,
        tuple(packet(node.operation).rstrip("_") for node in run),
        parameters,
        sum(elements.get(found, 0) for found in parameters),
        sum(node.flops for node in run),
        marks(parameters, address),
        run[-1].outputs[:1],
    )


def _elements(graph: Graph) -> dict[tuple[str, ...], int]:
    return {
        node.addresses: math.prod(node.outputs[0].shape)
        for node in graph.nodes
        if node.role == "parameter"
    }


def _add_outputs(
    graph: Graph,
    home: dict[int, int],
    blocks: list[Block],
    between: dict[tuple[int, int], dict[Spec, None]],
) -> None:
    """The outputs, each by itself where they are few; else those that one block makes as one."""
    made: dict[tuple[int, str], list[tuple[str, Spec]]] = {}
    many = len(graph.leaves) > _OUTPUTS
    for leaf in graph.leaves:
        source = home.get(leaf.source.node) if leaf.source is not None else None
        if source is not None:
            made.setdefault((source, "" if many else leaf.path), []).append((leaf.path, leaf.spec))
    for (source, _), leaves in made.items():
        specs = tuple(dict.fromkeys(spec for _, spec in leaves))
        between[source, len(blocks)] = dict.fromkeys(specs)
        path, last = leaves[0][0], leaves[-1][0]
        blocks.append(Block("output", path, made=specs, repeats=len(leaves), last=last))


def _counted(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks, where a module with parameters runs several times with the number of the call."""
    calls: dict[str, list[int]] = {}
    for place, block in enumerate(blocks):
        if block.kind == "module" and block.parameters:
            calls.setdefault(block.address, []).append(place)
    numbered = list(blocks)
    for places in calls.values():
        same = {blocks[place].parameters for place in places}
        if len(places) > 1 and len(same) == 1:
            for number, place in enumerate(places, 1):
                numbered[place] = replace(blocks[place], call=(number, len(places)))
    return tuple(numbered)
