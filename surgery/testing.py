"""The contract test of a family. Plugins that ship with the project and others run the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from surgery import tree
from surgery.claims import holds_parameters
from surgery.errors import AddressError, ClaimContradictedError, PluginError, SurgeryError
from surgery.families.applied import (
    attribute,
    blocks_for,
    example_for,
    heads_for,
    stages_for,
    stem_for,
)
from surgery.families.family import Family, contradicted, overlaps
from surgery.families.registry import Registry, check_registry
from surgery.graph.record import record_graph

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.catalog import Builder
    from surgery.graph.example import Example
    from surgery.graph.graph import Graph, Node
    from surgery.heads import Head


def check_family(
    family: Family,
    *,
    registry: Registry | None = None,
    models: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> tuple[str, ...]:
    """Hold a family to everything it says, on every model it can build.

    Each model is built on the ``meta`` device where its constructor allows, so that no weight is
    made. Then the claim must find the family; its example must run; the claimed heads must be
    there and be what the graph shows, all of them and no other; stem and stages must exist, be
    disjoint, be run in that order and, with the heads, hold every parameter; so must blocks, but
    for the order and what goes with the heads; and the attributes of ``sync`` must equal the
    number of classes. Every head claim must hold in some model.

    Args:
        family: the family to check.
        registry: the registry that has to find it; one with this family alone, if left out.
        models: builders by name, instead of the family's catalog.

    Returns:
        The names that were checked.

    Raises:
        ClaimContradictedError: a model shows something else than the family says.
        ClaimConflictError: another plugin in the registry claims the same class.
        PluginError: there is nothing to check, or a name of the catalog cannot be built.

    Example:
        >>> from torch import nn
        >>> from surgery.families import Family, HeadClaim
        >>> from surgery.testing import check_family
        >>> class Tiny(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.num_classes = nn.Linear(8, 4), 3
        ...         self.classifier = nn.Linear(4, 3)
        ...     def forward(self, x):
        ...         return self.classifier(self.body(x).relu())
        >>> family = Family(
        ...     name="tiny",
        ...     classes=(f"{Tiny.__module__}.Tiny",),
        ...     example=(2, "body.in_features"),
        ...     heads=(HeadClaim("classifier"),),
        ...     stem=("body",),
        ...     sync=("num_classes",),
        ... )
        >>> check_family(family, models={"tiny": Tiny})
        ('tiny',)
    """
    check_registry(registry)
    registry = Registry.of(family) if registry is None else registry
    builders = models or {
        name: partial(_imported, family, name, target) for name, target in family.catalog.items()
    }
    if not builders:
        raise PluginError(
            f"family {family.name!r} can build no model, so there is nothing to check it on",
            where=f"Family({family.name!r}).catalog",
            expected="at least one name",
            found="none",
            fix="check_family(family, models={'tiny': lambda: TinyNet()})",
        )
    held: set[str] = set()
    for name, build in builders.items():
        held |= _check_model(family, name, _build(family, name, build), registry)
    for claim in () if callable(family.heads) else family.heads:
        if claim.address not in held:
            raise contradicted(
                family,
                f"none of {', '.join(builders)} has a module there",
                expected=f"a head at {claim.address!r} in some model",
            )
    return tuple(builders)


def _imported(family: Family, name: str, target: Builder) -> nn.Module:
    if callable(target):
        return target()
    module, _, path = target.partition(":")
    build = attribute(import_module(module), path)
    if not callable(build):
        raise PluginError(
            f"family {family.name!r} cannot build {name!r}: nothing to call at {target!r}",
            where=f"Family({family.name!r}).catalog[{name!r}]",
            expected="a callable",
            found=repr(build),
            fix=f"import {module}; dir({module})",
        )
    model: nn.Module = build()
    return model


def _build(family: Family, name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """On meta, or for real where the constructor needs values; no random number is used up."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build()
        except PluginError:
            raise
        except Exception as on_meta:  # a foreign constructor may raise anything
            try:
                return build()
            except Exception as error:
                raise PluginError(
                    f"family {family.name!r} cannot build {name!r}",
                    where=f"Family({family.name!r}).catalog[{name!r}]",
                    expected="a model",
                    found=f"{type(error).__name__}: {error}",
                    fix=f"call {family.catalog.get(name, name)!r} without arguments",
                ) from on_meta


def _check_model(family: Family, name: str, model: nn.Module, registry: Registry) -> set[str]:
    """Every check on one model; the head claims that it bears out."""
    claimed = registry.claim(model)
    if claimed is not family:
        raise ClaimContradictedError(
            f"family {family.name!r} does not claim {name!r}, which it can build",
            where=f"Family({family.name!r}).classes",
            expected=f"one of: {', '.join(map(tree.class_name, type(model).__mro__[:-2]))}",
            found=", ".join(family.classes)
            + (f" (claimed by family {claimed.name!r})" if claimed else ""),
            fix=f"classes=({tree.class_name(type(model))!r},)",
        )
    example = example_for(family, model)
    try:
        held = _check_heads(family, name, model, example, registry)
        if family.stem or family.stages:
            _check_places(family, name, model, example)
        _check_blocks(family, name, model)
    except PluginError:
        raise
    except SurgeryError as error:
        raise contradicted(
            family, f"{name}: {error}", expected=f"a model that runs with {_shown(family)}"
        ) from error
    return held


def _check_heads(
    family: Family, name: str, model: nn.Module, example: Example | None, registry: Registry
) -> set[str]:
    from surgery.heads import find_heads

    index = tree.index(model)
    there = {address for _, addresses in index.modules.values() for address in addresses}
    there |= {address for entry in index.tensors.values() for address in entry.addresses}
    # A layer without parameters stands where a model was built without a head.
    claims = [
        claim
        for claim in heads_for(family, model)
        if claim.address in there and holds_parameters(index, claim.address)
    ]
    heads = find_heads(model, example, registry=registry)
    shown = "; ".join(_describe(head) for head in heads) or "no head"
    for claim in claims:
        if not any(
            claim.covers(head.address) and head.role == claim.role and head.corroborated
            for head in heads
        ):
            raise contradicted(family, f"{name}: {shown}")
    for head in heads:
        if not any(claim.covers(head.address) for claim in claims):
            raise contradicted(family, f"{name}: {shown}")
    classes = [claim for claim in claims if claim.role == "main"]
    mains = (h.num_classes for h in heads if any(claim.covers(h.address) for claim in classes))
    main = next(mains, None)
    for path in family.sync:
        _check_synced(family, name, model, path, main)
    for claim in claims:
        counts = [head.num_classes for head in heads if claim.covers(head.address)]
        for path in claim.sync:
            _check_synced(family, name, model, path, counts[0])
    return {claim.address for claim in claims}


def _check_synced(
    family: Family, name: str, model: nn.Module, path: str, count: int | None
) -> None:
    if (value := attribute(model, path)) != count:
        raise contradicted(family, f"{name}: {path} is {value!r}", expected=f"{path} = {count}")


def _shown(family: Family) -> str:
    spec = family.example
    return f"its example {spec}" if isinstance(spec, tuple) else "its example"


def _describe(head: Head) -> str:
    sure = "" if head.corroborated else ", not corroborated"
    return f"{head.address} ({head.role}, {head.num_classes} classes{sure})"


def _check_places(family: Family, name: str, model: nn.Module, example: Example | None) -> None:
    """Stem and stages exist, are disjoint, run in that order, and miss no parameter."""
    stem = stem_for(family, model)
    steps = [("stem", stem)] if stem else []
    steps += [(f"stages[{i}]", stage) for i, stage in enumerate(stages_for(family, model))]
    if not steps:
        return
    if example is None:
        raise PluginError(
            f"family {family.name!r} has stages and no example, so their order cannot be checked",
            where=f"Family({family.name!r}).example",
            expected="an example",
            found="None",
            fix="example=(2, 3, 224, 224)",
        )
    places = _check_disjoint(family, name, model, steps)
    for entry in tree.index(model).of_kind("parameter"):
        if not any(_inside(found, place) for found in entry.addresses for _, place in places):
            raise contradicted(
                family,
                f"{name}: {entry.address} is in none of them",
                expected="every parameter in the stem, a stage or a head",
            )
    graph = record_graph(model, example, train=False)
    _check_order(family, name, graph, steps)
    if stem and not _takes_input(graph, stem[0]):
        raise contradicted(
            family,
            f"{name}: {stem[0]} reads what other layers made",
            expected=f"the input reaches {stem[0]!r} (stem) first",
        )


def _check_blocks(family: Family, name: str, model: nn.Module) -> None:
    """Blocks exist, and are disjoint."""
    blocks = enumerate(blocks_for(family, model))
    _check_disjoint(family, name, model, [(f"blocks[{i}]", block) for i, block in blocks])


def _check_disjoint(
    family: Family, name: str, model: nn.Module, steps: Iterable[tuple[str, tuple[str, ...]]]
) -> list[tuple[str, str]]:
    """What each part holds, and the heads: all there, and nothing twice."""
    places = [(label, address) for label, addresses in steps for address in addresses]
    for label, address in places:
        try:
            tree.get(model, address)
        except AddressError as error:
            raise contradicted(
                family, f"{name}: {error}", expected=f"{address!r} ({label})"
            ) from error
    places += [("heads", claim.address) for claim in heads_for(family, model)]
    for (label, address), (other_label, other) in overlaps(places):
        raise contradicted(
            family,
            f"{name}: {address!r} ({label}) and {other!r} ({other_label}) overlap",
            expected="each part of the model in one place only",
        )
    return places


def _check_order(
    family: Family, name: str, graph: Graph, steps: Iterable[tuple[str, tuple[str, ...]]]
) -> None:
    before, last = "", -1
    for label, addresses in steps:
        used = (node.index for node in graph.operations if _uses(node, addresses))
        first = next(used, None)
        if first is None:
            raise contradicted(
                family,
                f"{name}: no operation uses a parameter of it",
                expected=f"{label} = {addresses} takes part in the forward pass",
            )
        if first < last:
            raise contradicted(
                family, f"{name}: {label} runs before {before}", expected=f"{before}, then {label}"
            )
        before, last = label, first


def _takes_input(graph: Graph, address: str) -> bool:
    """Whether an input reaches a layer through operations that have no parameter."""
    reached = {node.index for node in graph.nodes if node.role == "input"}
    for node in graph.operations:
        if any(ref.node in reached for ref in node.inputs):
            if _uses(node, (address,)):
                return True
            if not node.parameters:
                reached.add(node.index)
    return False


def _uses(node: Node, places: tuple[str, ...]) -> bool:
    return any(
        _inside(address, place)
        for addresses in node.parameters
        for address in addresses
        for place in places
    )


def _inside(address: str, place: str) -> bool:
    return f"{address}.".startswith(f"{place}.")
