"""The parts of a model in the order in which data goes through them, each with its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, RecordError
from surgery.families.registry import Registry, in_force
from surgery.graph.graph import Graph
from surgery.graph.record import record_graph
from surgery.graph.walk import mixing
from surgery.operations.known_stages import known_blocks, known_stages
from surgery.patterns import prefixes
from surgery.recording import resolve_example

# Into how many parts the depth of a graph is divided where nobody says.
LAYERS = 12
_BLOCKS = "blocks"

Layers: TypeAlias = "int | Literal['blocks'] | None"


@dataclass(frozen=True)
class Stage:
    """A part of a model.

    Attributes:
        name: ``stem``, the first address of a family's stage, ``head``; ``depth 3`` by graph.
        parameters: the first address of each of its parameters, in the model's order.
        parts: what to name to freeze it: the family's addresses, or the parameters themselves.
    """

    name: str
    parameters: tuple[str, ...]
    parts: tuple[str, ...]


def stages_of(
    model: nn.Module,
    *,
    layers: Layers = None,
    example: Any = None,
    registry: Registry | None = None,
) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """The stages of a model, the first one first, and notes.

    The family's stem and stages, and what follows them (the heads) as the last one. Without a
    family, or where ``layers`` is a number: by depth in the recorded graph, the number of layers
    with weights that lie in front of each.

    Args:
        model: any module.
        layers: into how many stages the depth is divided, whatever the family says; ``"blocks"``
            for a stage of each block that the family knows.
        example: for recording.
        registry: the plugins to ask.

    Raises:
        ArgumentError: no number of layers, or no plugin knows the blocks.
        RecordError: there is no family with stages, and the model cannot be recorded.
    """
    known = in_force(registry)
    if layers == _BLOCKS:
        blocks = known_blocks(model, known)
        if not blocks:
            raise _unknown_blocks(model, known)
        return _by_family(model, [(block[0], block) for block in blocks]), ()
    if layers is not None and (type(layers) is not int or layers < 1):
        raise ArgumentError(
            "this is no number of layers",
            where="layers",
            expected="a whole number above zero, 'blocks', or None for the family's stages",
            found=repr(layers),
            fix=f"surgery.parameter_groups(model, lr=1e-3, layer_decay=0.75, layers={LAYERS})",
        )
    found = known_stages(model, known) if layers is None else None
    if found is None:
        return _by_depth(model, layers or LAYERS, example, registry)
    named = [("stem", found.stem), *((stage[0], stage) for stage in found.stages)]
    return _by_family(model, named), ()


def _unknown_blocks(model: nn.Module, known: Registry) -> ArgumentError:
    family = known.claim(model)
    return ArgumentError(
        "no plugin knows the blocks of this model",
        where="layers='blocks'",
        expected="a family that says of which blocks its stages are made",
        found="no family" if family is None else f"family {family.name!r}, which does not",
        fix=f"layers={LAYERS} divides the depth of the graph; leave layers out for the family's "
        "stages",
    )


def _by_family(model: nn.Module, named: list[tuple[str, tuple[str, ...]]]) -> tuple[Stage, ...]:
    """The parts that a family names, and what is in none of them as the last."""
    places = {part: number for number, (_, parts) in enumerate(named) for part in parts}
    held: list[list[str]] = [[] for _ in range(len(named) + 1)]
    for entry in tree.index(model).of_kind("parameter"):
        # What several stages share belongs to the first that uses it.
        first = [places[p] for a in entry.addresses for p in prefixes(a) if p in places]
        held[min(first, default=len(named))].append(entry.address)
    rest = tuple(held[-1])
    return tuple(
        Stage(name, tuple(inside), parts)
        for (name, parts), inside in zip([*named, ("head", rest)], held, strict=True)
        if inside
    )


def _by_depth(
    model: nn.Module, layers: int, example: Any, registry: Registry | None
) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    depths, notes = _depths(model, example, registry)
    entries = [entry.address for entry in tree.index(model).of_kind("parameter")]
    deepest = max(depths.values(), default=0)
    outside = [address for address in entries if address not in depths]
    if outside:
        notes = (*notes, f"used in no recording, so counted as the last: {_brief(outside)}")
    levels = deepest + 1
    count = min(layers, levels)
    held: list[list[str]] = [[] for _ in range(count)]
    for address in entries:
        held[depths.get(address, deepest) * count // levels].append(address)
    inside = [tuple(each) for each in held if each]
    stages = tuple(Stage(f"depth {n}", each, each) for n, each in enumerate(inside, 1))
    return stages, notes


def _brief(addresses: list[str]) -> str:
    more = f" and {len(addresses) - 4} more" if len(addresses) > 4 else ""
    return ", ".join(addresses[:4]) + more


def _depths(
    model: nn.Module, example: Any, registry: Registry | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """How many layers with weights lie in front of each parameter, by its first address."""
    first = {a: e.address for e in tree.index(model).of_kind("parameter") for a in e.addresses}
    resolved = resolve_example(model, example, registry=registry)
    found: dict[str, int] = {}
    errors: list[RecordError] = []
    notes: list[str] = []
    for train in (False, True):
        if found.keys() >= set(first.values()):
            break
        try:
            graph = record_graph(tree.unwrap(model), resolved, train=train)
        except RecordError as error:
            errors.append(error)
            continue
        notes += graph.blind_spots
        for address, depth in _of_graph(graph):
            found.setdefault(first[address], depth)
    if len(errors) == 2:
        raise errors[0]
    return found, tuple(dict.fromkeys(notes))


def _of_graph(graph: Graph) -> Iterable[tuple[str, int]]:
    depth = [0] * len(graph.nodes)
    found: dict[str, int] = {}
    for node in graph.nodes:
        ahead = max((depth[ref.node] for ref in node.inputs), default=0)
        mixes = node.depends_on_input and mixing(graph, node) is not None
        depth[node.index] = ahead + mixes if node.depends_on_input else 0
        if node.depends_on_input:
            # A norm, or a bias of its own, belongs to the layer in front of it.
            own = max(depth[node.index] - 1, 0)
            for addresses in node.parameters:
                found[addresses[0]] = min(found.get(addresses[0], own), own)
    return found.items()
