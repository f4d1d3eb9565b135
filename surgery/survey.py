"""Both recordings of a model and the heads found in them: what every operation starts from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.claims import (
    SCORED,
    Claimed,
    checked,
    claim_on,
    claims_of,
    holds_parameters,
    synced_facts,
)
from surgery.errors import RecordError
from surgery.facts import Fact, find_facts
from surgery.families.applied import heads_for, is_headless
from surgery.families.family import Family, HeadRole
from surgery.families.registry import Registry, in_force
from surgery.findings import Evidence, Head, HeadOutput, Heads
from surgery.graph.aten import packet
from surgery.graph.axes import Track, follow, packings_of
from surgery.graph.cut import is_cut
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Leaf, Node, Ref
from surgery.graph.packing import PLAIN, Packing
from surgery.graph.read_on import is_read_on
from surgery.graph.record import record_graph
from surgery.graph.skeleton import holds_features
from surgery.graph.walk import Mixing, ancestors, feeding, frontier, weight_sources
from surgery.owners import Owner, owner_of
from surgery.recording import resolve_example
from surgery.splits import split_remedy

# More mixing operations than this behind one output, the first feeding the last, is a stream.
_STREAM = 32

# How many outputs are told apart in words where none of them has a head.
_SAID = 4

_NO_REMEDY = "nothing to do: find a model that makes classes"

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
        axis: the class axis of the output; -1 where the scores are none.
        track: where the class axis went on the way.
        packing: how the features that the operation makes hold the classes.
    """

    mode: str
    leaf: Leaf
    mixing: Mixing
    axis: int
    track: Track
    packing: Packing = PLAIN

    @property
    def classes(self) -> int:
        """The number of classes made here."""
        return self.packing.classes(self.mixing.features)

    @property
    def span(self) -> int:
        """How much of the class axis of the output it fills."""
        packing = PLAIN if self.leaf.source is None else self.track.packing(self.leaf.source)
        return packing.entries(self.classes)


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
        family: the family of the model itself, if any.
    """

    example: Example
    graphs: Mapping[str, Graph]
    heads: Heads
    sites: Mapping[str, tuple[Site, ...]]
    facts: tuple[Fact, ...]
    blind_spots: tuple[str, ...]
    family: Family | None = None


def survey(
    model: nn.Module,
    example: Any = None,
    *,
    registry: Registry | None = None,
    briefly: bool = False,
) -> Survey:
    """Record a model in both modes and find its heads.

    Args:
        model: any module.
        example: the arguments of one forward pass, or None.
        registry: the plugins to ask; those installed, if left out.
        briefly: leave train mode out where eval mode reads every parameter: it has no other layers.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        RecordError: the model runs in neither mode.
        ClaimContradictedError: the model's family claims another layer than the graph shows.
    """
    tree.check_model(model)
    registry = in_force(registry)
    resolved = resolve_example(model, example, registry=registry)
    index = tree.index(model)
    graphs, spots = _record_both(model, resolved, index if briefly else None)
    claims = claims_of(index, registry)
    facts = _facts(model, index, registry)
    looking = _Looking(index, facts, claims)
    found: dict[str, list[tuple[Owner, Site]]] = {}
    endings: dict[str, str] = {}
    for mode, graph in graphs.items():
        spots += [spot for spot in graph.blind_spots if spot not in spots]
        for leaf in graph.leaves:
            sites, ending = _sites(mode, graph, leaf, looking)
            if any(_is_read_on(graph, pair, looking) for pair in sites):
                sites, ending = [], f"{leaf.path} {leaf.spec} is what other outputs are made of"
            endings.setdefault(leaf.path, ending)
            for owner, site in sites:
                found.setdefault(owner.address, []).append((owner, site))
    in_eval = any(site.mode == "eval" for places in found.values() for _, site in places)
    heads = [_head(places, looking, in_eval) for places in found.values()]
    heads = checked(index, registry, claims, heads)
    sites_by_head = {head.address: tuple(site for _, site in found[head.address]) for head in heads}
    said = list(dict.fromkeys(endings.values())) or ["no output holds a tensor"]
    if len(said) > _SAID:
        said = [*said[:_SAID], f"{len(said) - _SAID} more outputs"]
    remedy = ""
    part, name = _known_inside(index, registry) if not heads else ("", "")
    if part:
        said.insert(0, f"family {name!r} knows heads in {part!r}")
        remedy = f"surgery.replace_head(model.get_submodule({part!r}), 7)"
    packed = [] if heads else _packed(index)
    if packed:
        shown = ", ".join(map(repr, packed[:4])) + (", ..." if len(packed) > 4 else "")
        said = [f"the weights of {shown} are packed and cannot be seen into", *said]
        said = [item.replace(_NO_LAYER, _NO_SEEN_LAYER) for item in said]
    family = registry.claim(index.root)
    if family is not None and is_headless(family, index.root):
        said.insert(0, f"family {family.name!r} says that nothing in it makes classes")
        # Where others of the family have heads, one can be attached.
        remedy = "" if callable(family.headless) else _NO_REMEDY
    elif not heads and not remedy:
        remedy = split_remedy(next(iter(graphs.values())), facts)
    scored = [head for head in heads if head.role in SCORED]
    if scored:
        said = [f"{head.address} {SCORED[head.role]}" for head in scored] + said
        remedy = remedy or _NO_REMEDY
    joined = _branches(graphs, sites_by_head)
    listed = Heads(tuple(heads), "; ".join(said), joined, remedy)
    return Survey(resolved, graphs, listed, sites_by_head, facts, tuple(spots), family)


def _known_inside(index: tree.Index, registry: Registry) -> tuple[str, str]:
    """The first part whose family knows heads that are none of the whole's outputs, and a name."""
    for module, addresses in index.modules.values():
        family = registry.claim(module) if addresses[0] else None
        claims = () if family is None else heads_for(family, module)
        if family is not None and any(
            holds_parameters(index, tree.join(addresses[0], claim.address)) for claim in claims
        ):
            return addresses[0], family.name
    return "", ""


def _packed(index: tree.Index) -> list[str]:
    """The layers that keep their weights in an object of their own, and not in tensors."""
    found = []
    for module, addresses in index.modules.values():
        if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
            owner, name = tree.split(addresses[0])
            found.append(owner if name == "_packed_params" else addresses[0])
    return list(dict.fromkeys(found))


def _record_both(
    model: nn.Module, example: Example, brief: tree.Index | None
) -> tuple[dict[str, Graph], list[str]]:
    graphs: dict[str, Graph] = {}
    errors: dict[str, RecordError] = {}
    for mode, train in (("eval", False), ("train", True)):
        if train and brief is not None and "eval" in graphs and _all_read(brief, graphs["eval"]):
            continue
        try:
            graphs[mode] = record_graph(model, example, train=train)
        except RecordError as error:
            errors[mode] = error
    if not graphs:
        raise errors["eval"]
    return graphs, [f"{mode} mode was not seen: {error.what}" for mode, error in errors.items()]


def _all_read(index: tree.Index, graph: Graph) -> bool:
    read = {address for node in graph.nodes for address in node.addresses}
    return all(not read.isdisjoint(entry.addresses) for entry in index.of_kind("parameter"))


@dataclass(frozen=True)
class _Looking:
    """What is known of a model when heads are looked for in its recordings."""

    index: tree.Index
    facts: tuple[Fact, ...]
    claims: tuple[Claimed, ...]

    def numbers(self, owner: Owner) -> frozenset[int]:
        """The numbers of classes that the model says of this layer, or of what it is part of."""
        return frozenset(fact.classes for fact in self.facts if _concerns(fact, owner))


def _facts(model: nn.Module, index: tree.Index, registry: Registry) -> tuple[Fact, ...]:
    """What the model says itself, and what its families say it says."""
    found = {fact.address: fact for fact in find_facts(model)}
    for fact in synced_facts(index, registry):
        found.setdefault(fact.address, fact)
    return tuple(found.values())


Sites: TypeAlias = list[tuple[Owner, Site]]


def _sites(mode: str, graph: Graph, leaf: Leaf, looking: _Looking) -> tuple[Sites, str]:
    """Where heads make this output, and what the graph shows behind it, in words."""
    if leaf.source is None:
        return [], f"{leaf.path} comes from outside the recording"
    if not holds_features(leaf.spec.dtype):
        return [], f"{leaf.path} holds integers"
    mixings = frontier(graph, leaf.source)
    if not mixings:
        return [], f"{leaf.path} {_NO_LAYER}"
    if len(mixings) > _STREAM and mixings[0].node in ancestors(graph, mixings[-1].node):
        return [], _stream(graph, leaf, mixings)
    found = [_site(mode, graph, leaf, mixing, looking) for mixing in mixings]
    there = [pair for pair in found if pair is not None]
    sites = _whole(leaf, there) or [pair for pair in there if _is_cut(graph, pair, looking)][:1]
    if not sites:
        sites = list(_scored(mode, graph, leaf, mixings, looking))
        if sites:
            return sites, f"{leaf.path} {leaf.spec} holds scores of something else"
        names = ", ".join(_operand(graph, mixing) for mixing in mixings[:4])
        return [], f"{leaf.path} {leaf.spec} ends in {names}, whose features are no axis of it"
    made = [site.mixing for _, site in sites]
    if any(_is_stream(graph, *pair) for pair in feeding(graph, made)):
        return [], _stream(graph, leaf, tuple(made))
    names = ", ".join(_operand(graph, mixing) for mixing in made[:4])
    return sites, f"{leaf.path} {leaf.spec} ends in {names}"


def _site(
    mode: str, graph: Graph, leaf: Leaf, mixing: Mixing, looking: _Looking
) -> tuple[Owner, Site] | None:
    """Where the features of an operation are an axis of the output, or a view's part of them."""
    source = leaf.source
    track = follow(graph, mixing.value, mixing.axis)
    reached = source in track.axes
    splits = () if reached else packings_of(graph, track)
    if source is None or not (reached or splits):
        return None
    owner = owner_of(looking.index, graph, mixing)
    packing = PLAIN
    if reached:
        claimed = claim_on(looking.claims, owner)
        factor = claimed.claim.factor if claimed is not None else 1
        if factor > 1 and mixing.features % factor == 0:
            packing = Packing(inner=factor)
    else:
        chosen = _split(graph, mixing, source, splits, looking.numbers(owner))
        if chosen is None:
            return None
        packing = chosen
    if packing != PLAIN:
        track = follow(graph, mixing.value, mixing.axis, packing)
    return owner, Site(mode, leaf, mixing, track.axes[source], track, packing)


def _split(
    graph: Graph,
    mixing: Mixing,
    source: Ref,
    splits: Sequence[Packing],
    numbers: frozenset[int],
) -> Packing | None:
    """The one part of split features that the model says are classes, as an axis of the output."""
    known = [packing for packing in splits if packing.classes(mixing.features) in numbers]
    tracks = {packing: follow(graph, mixing.value, mixing.axis, packing) for packing in known}
    whole = [p for p, t in tracks.items() if source in t.axes and t.packing(source) == PLAIN]
    return whole[0] if len(whole) == 1 else None


def _scored(
    mode: str, graph: Graph, leaf: Leaf, mixings: Sequence[Mixing], looking: _Looking
) -> Iterator[tuple[Owner, Site]]:
    """What a family says scores something else than classes: its scores need not be an axis."""
    for mixing in mixings:
        owner = owner_of(looking.index, graph, mixing)
        claimed = claim_on(looking.claims, owner)
        if claimed is not None and claimed.claim.role in SCORED:
            track = follow(graph, mixing.value, mixing.axis)
            yield owner, Site(mode, leaf, mixing, -1, track)


def _is_read_on(graph: Graph, pair: tuple[Owner, Site], looking: _Looking) -> bool:
    """Whether later layers read what a number alone takes for classes: keys and values do so."""
    owner, site = pair
    if claim_on(looking.claims, owner) is not None:
        return False
    return is_read_on(graph, site.mixing, site.leaf, split=site.packing != PLAIN)


def _whole(leaf: Leaf, sites: Sites) -> Sites:
    """The sites whose features fill the axis, or that fill it together; a padded one if alone."""
    size = leaf.spec.shape
    full = [pair for pair in sites if pair[1].span == size[pair[1].axis]]
    parts = [pair for pair in sites if pair[1].span < size[pair[1].axis]]
    if any(site.span > 1 for _, site in full):
        return full
    axes = {site.axis for _, site in parts}
    joined: Sites = []
    if len(axes) == 1:
        spans, whole = [site.span for _, site in parts], size[axes.pop()]
        # Levels of a pyramid make the same entries each, for other places of another axis.
        levels = len(parts) > len(set(spans)) and sum(set(spans)) <= whole
        joined = parts if sum(spans) == whole or levels else []
    # One feature fills whatever has one entry, the axis of a single sample too.
    return joined or full or (parts if len(parts) == 1 else [])


def _is_cut(graph: Graph, pair: tuple[Owner, Site], looking: _Looking) -> bool:
    """Whether a family's head makes more than the output, which leaves the last rows away."""
    owner, site = pair
    claimed = claim_on(looking.claims, owner)
    if claimed is None or claimed.claim.role in SCORED:
        return False
    return is_cut(graph, site.track.axes, site.leaf)


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
    same = _weight(graph, first) == _weight(graph, second)
    # A head that feeds itself reads back its own answer; a recurrent layer its own features.
    return not same or first.in_features == first.features


def _stream(graph: Graph, leaf: Leaf, mixings: tuple[Mixing, ...]) -> str:
    return (
        f"{leaf.path} {leaf.spec} is a stream of features to which {len(mixings)} layers "
        f"contribute in turn, the last of them {_operand(graph, mixings[-1])}"
    )


def _weight(graph: Graph, mixing: Mixing) -> tuple[str, ...]:
    """Where the weight is: its tensors, or the layer that keeps it packed."""
    if mixing.packed:
        return (graph.nodes[mixing.node].module,)
    return tuple(source.addresses[0] for source in weight_sources(graph, mixing.weight))


def _operand(graph: Graph, mixing: Mixing) -> str:
    names = ", ".join(_weight(graph, mixing)[:2])
    return f"{names} ({graph.nodes[mixing.node].operation}, {mixing.features} features)"


def _head(places: Sites, looking: _Looking, in_eval: bool) -> Head:
    owner, first = places[0]
    sites = [site for _, site in places]
    outputs: dict[tuple[str, int, int], list[str]] = {}
    for site in sites:
        size = 1 if site.axis < 0 else site.leaf.spec.shape[site.axis]
        key = (site.leaf.path, site.axis, size)
        modes = outputs.setdefault(key, [])
        if site.mode not in modes:
            modes.append(site.mode)
    evidence = [
        Evidence("graph", f"the last layer to mix features on the way to {first.leaf.path}")
    ]
    only_training = in_eval and all(site.mode == "train" for site in sites)
    named = all(_AUXILIARY.search(site.leaf.path) for site in sites)
    role: HeadRole = "aux" if only_training or named else "main"
    background = ""
    claimed = claim_on(looking.claims, owner)
    if claimed is not None:
        family, role = claimed.family, claimed.claim.role
        evidence.append(
            Evidence("family", f"family {family.name!r} says so of {claimed.address!r}")
        )
        background = "" if role == "keypoints" else family.background
    for fact in looking.facts:
        if fact.classes == first.classes and _concerns(fact, owner):
            evidence.append(Evidence("attribute", f"{fact.address} says {first.classes}"))
    return Head(
        address=owner.address,
        addresses=owner.addresses,
        kind=owner.kind,
        in_features=first.mixing.in_features,
        num_classes=first.classes,
        role=role,
        outputs=tuple(HeadOutput(*key, tuple(modes)) for key, modes in outputs.items()),
        weights=owner.weights,
        tied_to=owner.tied_to,
        evidence=tuple(evidence),
        factor=first.packing.factor,
        background=background,
    )


def _concerns(fact: Fact, owner: Owner) -> bool:
    """Whether a fact stands on a module that the head is a part of."""
    return any(
        fact.module in ("", address) or address.startswith(f"{fact.module}.")
        for address in owner.addresses
    )
