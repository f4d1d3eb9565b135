"""Layers that run beside a head and make as many features, which no output reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from surgery.graph.graph import Graph, Ref
from surgery.graph.skeleton import holds_features
from surgery.graph.walk import Mixing, frontier, mixing, weight_sources
from surgery.heads import Head
from surgery.survey import Survey

# How many are named; the others are counted.
_NAMED = 3


def unread_notes(known: Survey, chosen: Sequence[tuple[Head, int]]) -> Iterator[str]:
    """Say which layers make as many features as a replaced head, for nothing that is returned.

    They are found as heads are, with every unread result in the place of an output: the nearest
    layers behind it that mix features. A classifier whose answer is dropped is one.

    Args:
        known: the recordings.
        chosen: the heads to be replaced, with their new numbers.
    """
    moved = {head.address for head, size in chosen if size != head.num_classes}
    counts = {site.mixing.features for address in moved for site in known.sites[address]}
    read: set[str] = set()
    unread: dict[str, int] = {}
    for graph in known.graphs.values():
        reached = _reached(graph)
        for node in graph.nodes:
            made = mixing(graph, node) if node.index in reached else None
            read.update(() if made is None else _weights(graph, made))
        for made in _ends(graph, reached):
            if made.features in counts:
                for address in _weights(graph, made)[:1]:
                    unread.setdefault(address, made.features)
    found = {address: count for address, count in unread.items() if address not in read}
    for features in dict.fromkeys(found.values()):
        names = [address for address, count in found.items() if count == features]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield (
            f"no output reads what is made with {', '.join(names[:_NAMED])}{more}, which keep"
            f"{'s' if len(names) == 1 else ''} {features} features and may be about the classes"
        )


def _reached(graph: Graph) -> frozenset[int]:
    """Every node that an output was computed from, through choices too."""
    pending = [leaf.source.node for leaf in graph.leaves if leaf.source is not None]
    seen: set[int] = set()
    while pending:
        index = pending.pop()
        if index not in seen:
            seen.add(index)
            pending.extend(ref.node for ref in graph.nodes[index].inputs)
    return frozenset(seen)


def _ends(graph: Graph, reached: frozenset[int]) -> Iterator[Mixing]:
    """The nearest mixing operations behind every result that nothing reads."""
    for node in graph.nodes:
        done = node.role == "operation" and node.outputs and not graph.users[node.index]
        if done and node.index not in reached and holds_features(node.outputs[0].dtype):
            yield from (m for m in frontier(graph, Ref(node.index)) if m.node not in reached)


def _weights(graph: Graph, made: Mixing) -> list[str]:
    """Every address of the tensors that a weight is made of; of a packed one, its layer's."""
    if made.packed:
        return [graph.nodes[made.node].module]
    return [a for source in weight_sources(graph, made.weight) for a in source.addresses]
