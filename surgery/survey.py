"""Both recordings of a model and the heads found in them: what every operation starts from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import RecordError
from surgery.facts import Fact, find_facts
from surgery.families.family import HeadClaim, HeadRole, contradicted
from surgery.families.registry import Registry, default_registry
from surgery.findings import Evidence, Head, HeadOutput, Heads
from surgery.graph.aten import packet
from surgery.graph.axes import Track, follow
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Leaf, Node
from surgery.graph.record import record_graph
from surgery.graph.skeleton import is_floating
from surgery.graph.walk import Mixing, ancestors, feeding, frontier, weight_sources
from surgery.owners import Owner, owner_of
from surgery.recording import resolve_example

# More mixing operations than this behind one output, the first feeding the last, is a stream.
_STREAM = 32

_NO_LAYER = "is made without any layer that mixes features"
_NO_SEEN_LAYER = "is made without any other layer that mixes features"

# What shapes features, and has no place between class scores and where they are joined.
_SHAPING = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "rrelu", "rrelu_with_noise", "elu", "celu", "selu"),
        *("gelu", "silu", "mish", "hardswish", "hardtanh", "threshold", "_prelu_kernel", "prelu"),
        *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
        *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("_batch_norm_with_update", "_batch_norm_no_update", "batch_norm_with_update"),
        *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "instance_norm"),
    }
)

# A part of an output's path that says auxiliary: aux, aux_logits, aux1, logits_aux, auxLogits.
_AUXILIARY = re.compile(r"(?:(?<![A-Za-z])[Aa][Uu][Xx]|(?<=[a-z0-9])Aux)(?:iliary)?(?![a-z])")


@dataclass(frozen=True)
class Site:
    """One place in one recording where a head makes (part of) one output.

    Attributes:
        mode: ``eval`` or ``train``.
        leaf: the output.
        mixing: the operation.
        axis: the class axis of the output.
        track: where the class axis went on the way.
    """

    mode: str
    leaf: Leaf
    mixing: Mixing
    axis: int
    track: Track


@dataclass(frozen=True)
class Survey:
    """What is known of a model before an operation.

    Attributes:
        example: the arguments it was recorded with.
        graphs: the recordings by mode, ``eval`` first; train mode is missing where it cannot
            be recorded.
        heads: the heads.
        sites: for every head's address, where it makes its outputs.
        facts: what the model says of its number of classes.
        blind_spots: what the recordings could not see.
    """

    example: Example
    graphs: Mapping[str, Graph]
    heads: Heads
    sites: Mapping[str, tuple[Site, ...]]
    facts: tuple[Fact, ...]
    blind_spots: tuple[str, ...]


def survey(model: nn.Module, example: Any = None, *, registry: Registry | None = None) -> Survey:
    """Record a model in both modes and find its heads.

    Args:
        model: any module.
        example: the arguments of one forward pass, or None.
        registry: the plugins to ask; those installed, if left out.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        RecordError: the model runs in neither mode.
        ClaimContradictedError: the model's family claims another layer than the graph shows.
    """
    tree.check_model(model)
    registry = default_registry() if registry is None else registry
    resolved = resolve_example(model, example, registry=registry)
    graphs, spots = _record_both(model, resolved)
    index = tree.index(model)
    facts = find_facts(model)
    claims = tuple(_claims(index, registry))
    found: dict[str, list[tuple[Owner, Site]]] = {}
    endings: dict[str, str] = {}
    for mode, graph in graphs.items():
        spots += [spot for spot in graph.blind_spots if spot not in spots]
        for leaf in graph.leaves:
            sites, ending = _sites(mode, graph, leaf)
            endings.setdefault(leaf.path, ending)
            for site in sites:
                owner = owner_of(index, graph, site.mixing)
                found.setdefault(owner.address, []).append((owner, site))
    in_eval = any(site.mode == "eval" for places in found.values() for _, site in places)
    heads = [_head(places, facts, claims, in_eval) for places in found.values()]
    heads = _checked(index, registry, heads)
    sites_by_head = {head.address: tuple(site for _, site in found[head.address]) for head in heads}
    said = list(dict.fromkeys(endings.values())) or ["no output holds a tensor"]
    packed = [] if heads else _packed(index)
    if packed:
        shown = ", ".join(map(repr, packed[:4])) + (", ..." if len(packed) > 4 else "")
        said = [f"the weights of {shown} are packed and cannot be seen into", *said]
        said = [item.replace(_NO_LAYER, _NO_SEEN_LAYER) for item in said]
    family = registry.claim(index.root)
    if family is not None and family.headless:
        said.insert(0, f"family {family.name!r} says that nothing in it makes classes")
    joined = _branches(graphs, sites_by_head)
    listed = Heads(tuple(heads), "; ".join(said), joined)
    return Survey(resolved, graphs, listed, sites_by_head, facts, tuple(spots))


def _packed(index: tree.Index) -> list[str]:
    """The layers that keep their weights in an object of their own, and not in tensors."""
    found = []
    for module, addresses in index.modules.values():
        if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
            owner, name = tree.split(addresses[0])
            found.append(owner if name == "_packed_params" else addresses[0])
    return list(dict.fromkeys(found))


def _record_both(model: nn.Module, example: Example) -> tuple[dict[str, Graph], list[str]]:
    graphs: dict[str, Graph] = {}
    errors: dict[str, RecordError] = {}
    for mode, train in (("eval", False), ("train", True)):
        try:
            graphs[mode] = record_graph(model, example, train=train)
        except RecordError as error:
            errors[mode] = error
    if not graphs:
        raise errors["eval"]
    return graphs, [f"{mode} mode was not seen: {error.what}" for mode, error in errors.items()]


def _sites(mode: str, graph: Graph, leaf: Leaf) -> tuple[list[Site], str]:
    """Where heads make this output, and what the graph shows behind it, in words."""
    if leaf.source is None:
        return [], f"{leaf.path} comes from outside the recording"
    if not is_floating(leaf.spec.dtype):
        return [], f"{leaf.path} holds integers"
    mixings = frontier(graph, leaf.source)
    if not mixings:
        return [], f"{leaf.path} {_NO_LAYER}"
    if len(mixings) > _STREAM and mixings[0].node in ancestors(graph, mixings[-1].node):
        return [], _stream(graph, leaf, mixings)
    tracks = [follow(graph, mixing.value, mixing.axis) for mixing in mixings]
    sites = [
        Site(mode, leaf, mixing, track.axes[leaf.source], track)
        for mixing, track in zip(mixings, tracks, strict=True)
        if leaf.source in track.axes
    ]
    sites = _whole(leaf, sites)
    if not sites:
        names = ", ".join(_operand(graph, mixing) for mixing in mixings[:4])
        return [], f"{leaf.path} {leaf.spec} ends in {names}, whose features are no axis of it"
    if any(_is_stream(graph, *pair) for pair in feeding(graph, [site.mixing for site in sites])):
        return [], _stream(graph, leaf, tuple(site.mixing for site in sites))
    names = ", ".join(_operand(graph, site.mixing) for site in sites[:4])
    return sites, f"{leaf.path} {leaf.spec} ends in {names}"


def _whole(leaf: Leaf, sites: list[Site]) -> list[Site]:
    """The sites whose features fill the axis, or that fill it together; a padded one if alone."""
    size = leaf.spec.shape
    full = [site for site in sites if site.mixing.features == size[site.axis]]
    if full:
        return full
    parts = [site for site in sites if site.mixing.features < size[site.axis]]
    axes = {site.axis for site in parts}
    if len(axes) == 1 and sum(site.mixing.features for site in parts) == size[axes.pop()]:
        return parts
    return parts if len(parts) == 1 else []


def _branches(graphs: Mapping[str, Graph], places: Mapping[str, tuple[Site, ...]]) -> str:
    """Where several heads make one output and features are shaped behind them: in words.

    So the branches of a trunk end, each in its normalisation, or together in a nonlinearity;
    heads whose answers are added or joined do not.
    """
    behind: dict[tuple[str, str], dict[str, list[Site]]] = {}
    for address, sites in places.items():
        for site in sites:
            by_head = behind.setdefault((site.mode, site.leaf.path), {})
            by_head.setdefault(address, []).append(site)
    for (mode, path), by_head in behind.items():
        for address, made in by_head.items() if len(by_head) > 1 else ():
            for site in made:
                shaping = _shaping(graphs[mode], site)
                if shaping is not None:
                    return (
                        f"{address} makes {path} together with others, and between them stands "
                        f"{shaping.operation}, as in a trunk with several branches"
                    )
    return ""


def _shaping(graph: Graph, site: Site) -> Node | None:
    """The first normalisation or nonlinearity of features between a head and its output."""
    if site.leaf.source is None:
        return None
    between = ancestors(graph, site.leaf.source.node) | {site.leaf.source.node}
    for ref in sorted(site.track.axes):
        node = graph.nodes[ref.node]
        shapes = packet(node.operation).removesuffix("_") in _SHAPING
        if shapes and node.index in between and node.index != site.mixing.node:
            return node
    return None


def _is_stream(graph: Graph, first: Mixing, second: Mixing) -> bool:
    """Whether one mixing feeding the other shows a trunk: heads of one output never do."""
    same = weight_sources(graph, first.weight) == weight_sources(graph, second.weight)
    # A head that feeds itself reads back its own answer; a recurrent layer its own features.
    return not same or first.in_features == first.features


def _stream(graph: Graph, leaf: Leaf, mixings: tuple[Mixing, ...]) -> str:
    return (
        f"{leaf.path} {leaf.spec} is a stream of features to which {len(mixings)} layers "
        f"contribute in turn, the last of them {_operand(graph, mixings[-1])}"
    )


def _operand(graph: Graph, mixing: Mixing) -> str:
    sources = weight_sources(graph, mixing.weight)
    names = ", ".join(source.addresses[0] for source in sources[:2])
    return f"{names} ({graph.nodes[mixing.node].operation}, {mixing.features} features)"


def _claims(index: tree.Index, registry: Registry) -> Iterator[tuple[str, HeadClaim, str]]:
    """Every family's claims, with full addresses and the family's name, the root's first."""
    for module, addresses in index.modules.values():
        family = registry.claim(module)
        for claim in family.heads if family is not None else ():
            for address in addresses:
                yield tree.join(address, claim.address), claim, family.name if family else ""


def _head(
    places: list[tuple[Owner, Site]],
    facts: Iterable[Fact],
    claims: Iterable[tuple[str, HeadClaim, str]],
    in_eval: bool,
) -> Head:
    owner, first = places[0]
    sites = [site for _, site in places]
    outputs: dict[tuple[str, int, int], list[str]] = {}
    for site in sites:
        key = (site.leaf.path, site.axis, site.leaf.spec.shape[site.axis])
        modes = outputs.setdefault(key, [])
        if site.mode not in modes:
            modes.append(site.mode)
    evidence = [
        Evidence("graph", f"the last layer to mix features on the way to {first.leaf.path}")
    ]
    only_training = in_eval and all(site.mode == "train" for site in sites)
    named = all(_AUXILIARY.search(site.leaf.path) for site in sites)
    role: HeadRole = "aux" if only_training or named else "main"
    for address, claim, family in claims:
        if claim.role != "coupled" and _covers(address, owner):
            evidence.append(Evidence("family", f"family {family!r} says so of {address!r}"))
            role = claim.role
            break
    classes = first.mixing.features
    for fact in facts:
        if fact.classes == classes and _concerns(fact, owner):
            evidence.append(Evidence("attribute", f"{fact.address} says {classes}"))
    return Head(
        address=owner.address,
        addresses=owner.addresses,
        kind=owner.kind,
        in_features=first.mixing.in_features,
        num_classes=classes,
        role=role,
        outputs=tuple(HeadOutput(*key, tuple(modes)) for key, modes in outputs.items()),
        weights=owner.weights,
        tied_to=owner.tied_to,
        evidence=tuple(evidence),
    )


def _covers(claimed: str, owner: Owner) -> bool:
    return any(a == claimed or a.startswith(f"{claimed}.") for a in owner.addresses)


def _concerns(fact: Fact, owner: Owner) -> bool:
    """Whether a fact stands on a module that the head is a part of."""
    return any(
        fact.module in ("", address) or address.startswith(f"{fact.module}.")
        for address in owner.addresses
    )


def _checked(index: tree.Index, registry: Registry, heads: list[Head]) -> list[Head]:
    """Hold the claims of the model's own family against the graph.

    A claim on a layer that was removed (an ``nn.Identity`` in its place) says that there is no
    head; a claim on a layer that holds parameters and makes no output is contradicted. What a
    layer makes that is coupled to the heads is no class.
    """
    family = registry.claim(index.root)
    if family is None:
        return heads
    if family.headless:
        return []
    coupled = [claim for claim in family.heads if claim.role == "coupled"]
    heads = [head for head in heads if not any(_is_covered(claim, head) for claim in coupled)]
    claimed = [c for c in family.heads if c.role not in ("coupled", "aux") and _there(index, c)]
    holding = [c for c in claimed if _holds_parameters(index, c.address)]
    for claim in holding:
        if not any(_is_covered(claim, head) for head in heads):
            shown = ", ".join(f"{h.address} ({h.num_classes})" for h in heads) or "no head"
            raise contradicted(family, shown)
    if claimed and not holding:
        return [head for head in heads if head.corroborated]
    return heads


def _is_covered(claim: HeadClaim, head: Head) -> bool:
    return any(claim.covers(address) for address in head.addresses)


def _there(index: tree.Index, claim: HeadClaim) -> bool:
    return any(claim.address in addresses for _, addresses in index.modules.values())


def _holds_parameters(index: tree.Index, address: str) -> bool:
    return any(
        place.startswith(f"{address}.")
        for entry in index.of_kind("parameter")
        for place in entry.addresses
    )
