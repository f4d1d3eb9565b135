"""Operations in the same place of two graphs that only one of them has, in its spelling.

They may be the same, written another way: an activation by its name or step by step. Whether they
are is for outputs to say, and whether outputs can say it is found out by leaving them out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from surgery.graph.align import Alignment
from surgery.graph.aten import packet
from surgery.graph.bounds import is_bound
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.identities import passes_on
from surgery.graph.pieces import MOVES
from surgery.graph.recorder import UPDATED
from surgery.graph.regions import Region, regions
from surgery.graph.skeleton import is_floating
from surgery.graph.spelling import Word, spelled
from surgery.graph.wording import settings_of, wording

# What makes a tensor out of no numbers, and what puts numbers where they are to be.
_MADE = ("new_", "empty", "zero", "ones", "fill", "full", "arange")
_NUMBERS = frozenset({"other", "alpha", "value"})
_PUT = frozenset({"copy", "index_put", "scatter", "slice_scatter"})


@dataclass(frozen=True)
class Extra:
    """Operations that one model has and the other has not, or has in other words.

    Attributes:
        side: 0 for the first of two graphs, 1 for the second.
        module: the address of the module that they ran in.
        nodes: their numbers, in order of execution.
        entry: the first of them that reads what goes in, and which of its inputs that is.
        told: what they do, for people.
        instead: where both have the one operation with another number, that of the other graph.
        parts: those of several that have one way in and one way out by themselves.
    """

    side: int
    module: str
    nodes: tuple[int, ...]
    entry: tuple[int, int]
    told: str
    instead: Node | None = None
    parts: tuple[Extra, ...] = ()

    @property
    def exit(self) -> int:
        """The operation whose result goes on."""
        return self.nodes[-1]


def extras(alignment: Alignment) -> Iterator[Extra]:
    """What only one of two graphs has between aligned cells.

    Args:
        alignment: of the graphs.

    Returns:
        Operations with one way in and one way out, each once. Bounds are left out: those have
        names and numbers, and are told by them.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> from surgery.graph.align import alignments
        >>> from surgery.graph.reduce import canonical
        >>> models = [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Softsign())]
        >>> x = torch.zeros(1, 3)
        >>> sides = (canonical(surgery.record(each, x, train=False)) for each in models)
        >>> [(each.module, each.told) for each in extras(next(alignments(*sides)))]
        [('1', 'abs() then add(other=1, alpha=1) then div()')]
    """
    graphs = alignment.one.graph, alignment.other.graph
    cells = _cells(alignment)
    seen: set[tuple[int, int]] = set()
    for lying in regions(alignment):
        found_in = map(_words, graphs, lying, cells)
        (words, said) = zip(*found_in, strict=True)
        if said[0] == said[1]:
            continue
        changes = SequenceMatcher(a=said[0], b=said[1], autojunk=False).get_opcodes()
        alone: tuple[list[Word], list[Word]] = [], []
        found: list[Extra] = []
        for _, *span in (change for change in changes if change[0] != "equal"):
            pair = words[0][span[0] : span[1]], words[1][span[2] : span[3]]
            numbers = list(_numbered_otherwise(graphs[0], *pair))
            found += numbers
            for side in (0, 1) if not numbers else ():
                alone[side].extend(pair[side])
        for side, graph in enumerate(graphs):
            found += _grouped(graph, alone[side], side)
        for each in found:
            if (each.side, each.exit) not in seen:
                seen.add((each.side, each.exit))
                yield each


def _numbered_otherwise(
    graph: Graph, one: Sequence[Word], other: Sequence[Word]
) -> Iterator[Extra]:
    """The first graph's operations, where the second has the same with other numbers."""
    if [word.name for word in one] != [word.name for word in other]:
        return
    pairs = [(a.nodes[0], b.nodes[0]) for a, b in zip(one, other, strict=True)]
    settings = [(settings_of(a), settings_of(b)) for a, b in pairs]
    apart = [
        {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
        for mine, theirs in settings
    ]
    if not all(names and names <= _NUMBERS for names in apart):
        return
    for (_, twin), word, like in zip(pairs, one, other, strict=True):
        found = _extra(graph, [word], 0)
        if found is not None:
            told = f"{word} in the donor, {like} in the recipient"
            yield replace(found, told=told, instead=twin)


def _words(
    graph: Graph, region: Region, cells: Mapping[int, int]
) -> tuple[list[Word], list[Hashable]]:
    """What is done in a region that changes numbers of the input or of a parameter.

    Returns:
        The operations, what is done to the same side by side; and for each what is equal for those
        that do the same to the same. Code writes some numbers in single precision.
    """
    sources = _sources(region, cells)
    found = []
    through = (n.index for n in region if _says(n) and given_back(graph, n) is None)
    for word in spelled(graph, through):
        told = wording(word.nodes, digits=6) if len(word.nodes) == 1 else ((word.name, ()),)
        found.append((sorted(sources[word.nodes[-1].index]), word, told))
    found.sort(key=lambda each: each[0])
    return [word for _, word, _ in found], [(*known, told) for known, _, told in found]


def _cells(alignment: Alignment) -> tuple[dict[int, int], dict[int, int]]:
    """By node of a cell, in both graphs, a number that it has in both; less than zero for none.

    What one operation makes in one of them, and several in the other, has one number.
    """
    back = {b: a for a, b in alignment.pairs}
    label = {a: a for a, _ in alignment.pairs}

    def joined(numbers: Sequence[int]) -> None:
        known = {label[number] for number in numbers if number in label}
        label.update((each, min(known)) for each, old in label.items() if old in known)

    nodes: tuple[dict[int, list[int]], dict[int, list[int]]] = {}, {}
    for number, cell in enumerate(alignment.one.cells):
        nodes[0].setdefault(cell.node, []).append(number)
    for number, cell in enumerate(alignment.other.cells):
        nodes[1].setdefault(cell.node, []).append(back.get(number, -1))
    for numbers in (each for side in nodes for each in side.values() if len(each) > 1):
        joined(numbers)
    one, other = (
        {node: label.get(numbers[-1], -1) for node, numbers in side.items()} for side in nodes
    )
    return one, other


def _sources(region: Region, cells: Mapping[int, int]) -> dict[int, frozenset[int]]:
    """The cells that lead to each operation of a region."""
    found: dict[int, frozenset[int]] = {}
    for node in region:
        known = {cells[ref.node] for ref in node.inputs if ref.node in cells}
        found[node.index] = frozenset(known).union(*(found.get(r.node, ()) for r in node.inputs))
    return found


def _says(node: Node) -> bool:
    name = packet(node.operation)
    if node.role != "operation" or name.startswith(_MADE) or name.endswith("_like"):
        return False
    floating = is_floating(node.outputs[0].dtype)
    return floating and (node.depends_on_input or bool(node.parameters))


def given_back(graph: Graph, node: Node) -> Ref | None:
    """What an operation gives back number for number, whatever its form; None for something else.

    What was written somewhere is what is read there.
    """
    if node.role != "operation" or not node.inputs:
        return None
    name = packet(node.operation)
    if node.operation == UPDATED or name.rstrip("_") in _PUT:
        return node.inputs[-1]
    if name in MOVES or name.rstrip("_") in MOVES:
        return node.inputs[0]
    if name == "cat":
        filled = [ref for ref in node.inputs if math.prod(graph.spec(ref).shape)]
        return filled[0] if len(filled) == 1 else None
    return node.inputs[0] if passes_on(node, graph.spec(node.inputs[0]).shape) else None


def _grouped(graph: Graph, alone: Sequence[Word], side: int) -> Iterator[Extra]:
    """Those that lead to each other as one, where there is one way in and one way out."""
    groups: list[list[Word]] = []
    for word in alone:
        origins = {_origin(graph, ref).index for node in word.nodes for ref in node.inputs}
        into = [group for group in groups if origins & _numbers(group)]
        groups = [group for group in groups if group not in into]
        groups.append([*(each for group in into for each in group), word])
    for group in groups:
        group.sort(key=lambda word: word.nodes[0].index)
        each = (_extra(graph, [word], side) for word in group)
        parts = tuple(
            part for part in each if part is not None and not is_bound(graph.nodes[part.exit])
        )
        whole = _extra(graph, group, side) if len(group) > 1 else None
        if whole is None:
            yield from parts
        elif parts:
            yield replace(whole, parts=parts)


def _numbers(group: Iterable[Word]) -> set[int]:
    return {node.index for word in group for node in word.nodes}


def _extra(graph: Graph, group: Sequence[Word], side: int) -> Extra | None:
    """Operations as one; None where several values go in, or several go on."""
    numbers = _numbers(group)
    ways: dict[int, tuple[int, int]] = {}
    for node in (graph.nodes[number] for number in sorted(numbers)):
        for place, ref in enumerate(node.inputs):
            origin = _origin(graph, ref)
            if origin.index not in numbers and (origin.depends_on_input or origin.parameters):
                ways.setdefault(origin.index, (node.index, place))
    last = max(numbers)
    onward = any(_readers(graph, number) - numbers for number in numbers - {last})
    if len(ways) != 1 or onward:
        return None
    (entry,) = ways.values()
    told = " then ".join(map(str, group))
    return Extra(side, graph.nodes[last].module, tuple(sorted(numbers)), entry, told)


def _origin(graph: Graph, ref: Ref) -> Node:
    """What made the numbers that are read, behind all that only moves them."""
    while (source := given_back(graph, graph.nodes[ref.node])) is not None:
        ref = source
    return graph.nodes[ref.node]


def _readers(graph: Graph, number: int) -> set[int]:
    """Who reads the numbers that a node makes, behind all that only moves them."""
    found, pending = set[int](), list(graph.users[number])
    while pending:
        each = pending.pop()
        if given_back(graph, graph.nodes[each]) is not None:
            pending += graph.users[each]
        else:
            found.add(each)
    return found
