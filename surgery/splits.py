"""What to do where features are split by a view, and nothing says which part counts classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from surgery.facts import Fact
from surgery.graph.axes import follow, packings_of
from surgery.graph.graph import Graph, Leaf
from surgery.graph.packing import PLAIN
from surgery.graph.skeleton import holds_features
from surgery.graph.walk import frontier, weight_sources

# More layers than this behind one output are a stream of features, and their parts no classes.
_STREAM = 32


def split_remedy(graph: Graph, facts: Sequence[Fact]) -> str:
    """The next step for a model without a head, from how its features become its outputs.

    Args:
        graph: the recording.
        facts: what the model says of its number of classes.

    Returns:
        The step as code, or an empty string where no features are split.
    """
    if graph.leaves and not any(holds_features(leaf.spec.dtype) for leaf in graph.leaves):
        return "let forward return the scores as well as what is chosen by them"
    for leaf in graph.leaves:
        for name, features, counts in _splits(graph, leaf):
            module = name.rpartition(".")[0]
            other = f"surgery.replace(model, {{{module!r}: module}})"
            said = sorted({fact.classes for fact in facts})
            if said:
                return (
                    f"no part of the {features} features of {name} is {said[0]} classes and "
                    f"nothing else, so none can follow: {other}, with what forward reshapes by"
                )
            if len(counts) == 1:
                return (
                    f"model.num_classes = {counts[0]}, if the {features} features of {name} are "
                    f"{features // counts[0]} for each of {counts[0]} classes, then this call "
                    "again; boxes beside the classes in that axis cannot be told apart, so there: "
                    f"{other}"
                )
            return (
                f"model.num_classes = {' or '.join(map(str, counts))}, whichever part of the "
                f"{features} features of {name} is the classes, then this call again; where "
                f"boxes stand beside the classes in one part, neither: {other}"
            )
    return ""


def _splits(graph: Graph, leaf: Leaf) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """A weight, its number of features, and how long the parts are that are an axis of an output.

    Parts of one entry count nothing.
    """
    source = leaf.source
    if source is None:
        return
    mixings = frontier(graph, source)
    for mixed in mixings if len(mixings) <= _STREAM else ():
        track = follow(graph, mixed.value, mixed.axis)
        counts: dict[int, None] = {}
        for packing in packings_of(graph, track) if source not in track.axes else ():
            way = follow(graph, mixed.value, mixed.axis, packing)
            number = packing.classes(mixed.features)
            if source in way.axes and way.packing(source) == PLAIN and number > 1:
                counts[number] = None
        sources = () if mixed.packed else weight_sources(graph, mixed.weight)
        if counts and sources:
            yield sources[0].addresses[0], mixed.features, tuple(counts)
