"""What reads the winning class: tables with one row a class, which no shape gives away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch

from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.graph.axes import Track
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.skeleton import is_floating
from surgery.graph.walk import weight_sources
from surgery.heads import Head
from surgery.survey import Site, Survey

_LOOKUPS = frozenset({"embedding", "index", "index_select", "gather"})

# What says where along an axis something stands, by the place of its argument for that axis.
_ALONG: Mapping[str, int] = {
    **dict.fromkeys(("argmax", "argmin", "max", "min", "median", "nanmedian", "mode"), 1),
    **dict.fromkeys(("sort", "cummax", "cummin"), 1),
    **dict.fromkeys(("topk", "kthvalue"), 2),
}


def class_tables(known: Survey, chosen: Sequence[tuple[Head, int]]) -> tuple[str, ...]:
    """Remarks on the tables in which a winning class is looked up.

    Args:
        known: the recordings.
        chosen: the heads with their new numbers of classes.

    Raises:
        PlanError: a table has fewer rows than there will be classes.
    """
    remarks: dict[str, None] = {}
    for head, size in chosen:
        for site in known.sites[head.address]:
            for address, rows in _tables(known.graphs[site.mode], site):
                if rows < size:
                    raise PlanError(
                        "the winning class is looked up in a table, which has too few rows for "
                        f"{size} classes",
                        where=address,
                        expected=f"at least {size} rows",
                        found=f"{rows} rows, for the {head.num_classes} classes of "
                        f"{head.address or 'the model itself'}",
                        fix="replace the table first: surgery.replace(model, "
                        f"{{{address.rpartition('.')[0]!r}: module}})",
                    )
                if rows == head.num_classes:
                    remarks[f"{address} is looked up by class and keeps its {rows} rows"] = None
    return tuple(remarks)


def _tables(graph: Graph, site: Site) -> Iterator[tuple[str, int]]:
    """The address and the number of rows of every table that a class of this head indexes."""
    choices: set[Ref] = set()
    for node in graph.nodes[site.mixing.node :]:
        if packet(node.operation) in _LOOKUPS:
            table, rows = node.inputs[0], _rows(graph, node, choices)
            sources = weight_sources(graph, table)
            if rows is not None and sources and not graph.nodes[table.node].depends_on_input:
                yield sources[0].addresses[0], rows
        choices.update(_choices(graph, node, site.track, choices))


def _rows(graph: Graph, node: Node, choices: Set[Ref]) -> int | None:
    """How many entries a table has along the axis that a class indexes; None where none does."""
    shape = graph.spec(node.inputs[0]).shape
    if packet(node.operation) == "index":
        by = [axis for axis, index in enumerate(node.arguments[1]) if index in choices]
        return shape[by[0]] if by else None
    if choices.isdisjoint(node.inputs[1:]):
        return None
    return shape[0 if packet(node.operation) == "embedding" else node.arguments[1]]


def _choices(graph: Graph, node: Node, track: Track, choices: Set[Ref]) -> Iterator[Ref]:
    """The outputs of an operation that are classes: which of them won, or such again."""
    name, scored = packet(node.operation), [ref for ref in node.inputs if ref in track.axes]
    along = _ALONG.get(name)
    if scored and along is not None:
        dim = _argument(node, along, "dim", None if name in ("argmax", "argmin") else -1)
        # The best of another axis are places, and their scores are no classes either.
        found = any(dim in (None, axis, axis - rank) for axis, rank in _axes(graph, scored, track))
    elif name in _LOOKUPS:
        found = node.inputs[0] in choices
    else:
        # Whole numbers with an axis for the classes are one place for each of them.
        scores = any(is_floating(graph.spec(ref).dtype) for ref in scored)
        found = scores or not choices.isdisjoint(node.inputs)
    for place in range(len(node.outputs)) if found else ():
        # Where a class stands among others is no class; the other result of sorting is.
        places = not scored and along is not None and place == len(node.outputs) - 1
        if not places and _is_whole(graph, Ref(node.index, place)):
            yield Ref(node.index, place)


def _axes(graph: Graph, refs: Iterable[Ref], track: Track) -> Iterator[tuple[int, int]]:
    """The class axis of each value, and how many axes it has."""
    return ((track.axes[ref], len(graph.spec(ref).shape)) for ref in refs)


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    if place < len(node.arguments):
        return node.arguments[place]
    return dict(node.keywords).get(name, default)


def _is_whole(graph: Graph, ref: Ref) -> bool:
    """Whether a value holds whole numbers, and is no mask."""
    dtype = graph.spec(ref).dtype
    return not is_floating(dtype) and dtype != torch.bool
