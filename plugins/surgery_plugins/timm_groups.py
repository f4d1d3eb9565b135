"""The groups of parameters that timm makes of a model: its stages, and its blocks."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from surgery_plugins.places import gathered

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages

GROUPS = "timm.models._manipulate:group_parameters"


def grouped(model: Any, *, coarse: bool) -> list[list[str]]:
    """Names of parameters as timm groups them, in order: by stages, or by blocks."""
    if not hasattr(model, "group_matcher"):
        return []
    found = resolve_name(GROUPS)(model, model.group_matcher(coarse=coarse))
    return [names for _, names in sorted(found.items())]


def stages_of(model: nn.Module, heads: tuple[str, ...], first: str) -> Stages:
    """The stem and the stages.

    Args:
        model: the model.
        heads: addresses of the classifiers, which are left out.
        first: the address of the layer that takes the input, or nothing.
    """
    found = grouped(model, coarse=True)
    without = tuple(f"{address}." for address in heads)
    kept = [[name for name in names if not name.startswith(without)] for names in found]
    if found:
        # Some of its patterns leave out the stem.
        known = {name for names in found for name in names}
        kept.insert(0, [name for name, _ in model.named_parameters() if name not in known])
    return gathered(model, kept, first)


def blocks_of(model: nn.Module, heads: tuple[str, ...]) -> Stages:
    """Stem and stages by blocks, as timm's learning rates by layer go.

    What timm groups with a classifier learns like it.

    Args:
        model: the model.
        heads: addresses of the classifiers.
    """
    within = tuple(f"{address}." for address in heads)
    found = grouped(model, coarse=False)
    kept = [names for names in found if not any(name.startswith(within) for name in names)]
    return gathered(model, kept)
