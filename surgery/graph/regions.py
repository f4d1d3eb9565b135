"""What lies between cells: every operation, and what is read on the way.

A stream names the longest way from one cell to the next. Where a value is used twice and joined
again (rotated positions, a gate of itself), there are others, and tables may come in on those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from surgery.graph.align import Alignment
from surgery.graph.canonical import Canonical
from surgery.graph.graph import Node, Ref

# The nodes in front of a cell or an output, in order of execution.
Region: TypeAlias = tuple[Node, ...]


def regions(alignment: Alignment) -> Iterator[tuple[Region, Region]]:
    """What lies in front of each aligned cell, and of each output, in both graphs.

    Args:
        alignment: of two graphs.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> from surgery.graph.align import alignments
        >>> from surgery.graph.reduce import canonical
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> side = canonical(surgery.record(model, torch.zeros(1, 3), train=False))
        >>> found = regions(next(alignments(side, side)))
        >>> [node.operation for one, _ in found for node in one if "relu" in node.operation]
        ['aten.relu.default']
    """
    one, other = alignment.one, alignment.other
    stops = _cells(one), _cells(other)
    for a, b in alignment.pairs:
        nodes = one.graph.nodes[one.cells[a].node], other.graph.nodes[other.cells[b].node]
        yield _region(one, nodes[0].inputs, stops[0]), _region(other, nodes[1].inputs, stops[1])
    paired = dict(alignment.pairs)
    for first, second in zip(one.ends, other.ends, strict=False):
        if first.stream is None or second.stream is None:
            continue
        if paired.get(first.stream.cell) == second.stream.cell:
            yield (
                _region(one, _sources(one, first.path), stops[0]),
                _region(other, _sources(other, second.path), stops[1]),
            )


def _cells(side: Canonical) -> frozenset[int]:
    return frozenset(cell.node for cell in side.cells)


def _sources(side: Canonical, path: str) -> tuple[Ref, ...]:
    return tuple(
        leaf.source for leaf in side.graph.leaves if leaf.path == path and leaf.source is not None
    )


def _region(side: Canonical, inputs: tuple[Ref, ...], stops: frozenset[int]) -> Region:
    pending = [ref.node for ref in inputs]
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number not in seen and number not in stops:
            seen.add(number)
            pending += [ref.node for ref in side.graph.nodes[number].inputs]
    return tuple(side.graph.nodes[number] for number in sorted(seen))
