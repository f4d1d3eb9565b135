"""The stages of a model as its family knows them, or that of the model behind an attached head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from surgery import tree
from surgery.families.applied import blocks_for, stages_for, stem_for
from surgery.families.family import Family, Stages
from surgery.families.registry import Registry
from surgery.operations.attached import Headed


@dataclass(frozen=True)
class KnownStages:
    """The parts of a model in the order in which data goes through them.

    Attributes:
        stem: the addresses of what comes before the first stage.
        stages: the addresses of every stage.
    """

    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]


def known_stages(model: nn.Module, registry: Registry) -> KnownStages | None:
    """The stages of a model, or None where no plugin knows them.

    A model that a head was attached to (``Headed``) has those of the model inside.

    Args:
        model: any module; wrappers are passed through.
        registry: the plugins to ask.
    """
    family, inner, inside = _known(model, registry)
    stages = () if family is None else stages_for(family, inner)
    if family is None or not stages:
        return None
    return KnownStages(_seen(inside, stem_for(family, inner)), _each_seen(inside, stages))


def known_blocks(model: nn.Module, registry: Registry) -> Stages:
    """The stem and the stages of a model in smaller parts; none where no plugin knows any.

    Args:
        model: any module; wrappers are passed through.
        registry: the plugins to ask.
    """
    family, inner, inside = _known(model, registry)
    return () if family is None else _each_seen(inside, blocks_for(family, inner))


def _known(model: nn.Module, registry: Registry) -> tuple[Family | None, nn.Module, str]:
    """The family, the model that it knows, and where in the whole that is."""
    family, inner, inside = registry.claim(model), tree.unwrap(model), ""
    while family is None and isinstance(inner, Headed):
        inside = tree.join(inside, "backbone")
        inner = tree.unwrap(inner.backbone)
        family = registry.claim(inner)
    return family, inner, inside


def _each_seen(inside: str, parts: Stages) -> Stages:
    return tuple(_seen(inside, part) for part in parts)


def _seen(inside: str, addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(tree.join(inside, address) for address in addresses)
