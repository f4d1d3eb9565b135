"""What reads the winning class: tables with one row a class, which no shape gives away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.graph.graph import Graph, Ref
from surgery.graph.skeleton import is_floating
from surgery.graph.walk import weight_sources
from surgery.heads import Head
from surgery.survey import Site, Survey

_LOOKUPS = frozenset({"embedding", "index", "index_select", "gather"})


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
    pending = [user for ref in site.track.axes for user in graph.users[ref.node]]
    seen: set[int] = set()
    while pending:
        index = pending.pop()
        if index in seen:
            continue
        seen.add(index)
        node = graph.nodes[index]
        if packet(node.operation) in _LOOKUPS and node.inputs[0].node not in seen:
            table = node.inputs[0]
            sources = weight_sources(graph, table)
            if sources and not graph.nodes[table.node].depends_on_input:
                yield sources[0].addresses[0], graph.spec(table).shape[0]
                continue
        if node.outputs and any(_is_choice(graph, Ref(index, i)) for i in range(len(node.outputs))):
            pending.extend(graph.users[index])


def _is_choice(graph: Graph, ref: Ref) -> bool:
    """Whether a value holds whole numbers made from the classes, and no mask."""
    dtype = graph.spec(ref).dtype
    return not is_floating(dtype) and str(dtype) != "torch.bool"
