"""The stages of a model as its family knows them, or that of the model behind an attached head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from surgery import tree
from surgery.families.applied import stages_for, stem_for
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
    family, inner, inside = registry.claim(model), tree.unwrap(model), ""
    while family is None and isinstance(inner, Headed):
        inside = tree.join(inside, "backbone")
        inner = tree.unwrap(inner.backbone)
        family = registry.claim(inner)
    stages = () if family is None else stages_for(family, inner)
    if family is None or not stages:
        return None

    def seen(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(tree.join(inside, address) for address in addresses)

    return KnownStages(seen(stem_for(family, inner)), tuple(map(seen, stages)))
