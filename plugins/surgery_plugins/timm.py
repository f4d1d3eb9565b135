"""Every model of timm: one family, as its models say themselves what they are.

They have no base class. Those that timm builds carry ``pretrained_cfg``; where one was made by
its class alone, the graph does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgery.families import Catalog, Family, HeadClaim, hookimpl
from surgery_plugins.timm_catalog import registered, target
from surgery_plugins.timm_groups import blocks_of, stages_of

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages, Stem
    from surgery.graph.example import Example


def config(model: Any) -> Mapping[str, Any]:
    """What timm says of a model that it built."""
    found = getattr(model, "pretrained_cfg", None)
    return found if isinstance(found, Mapping) else {}


def named(model: Any, key: str) -> tuple[str, ...]:
    """The addresses that stand under a key, those that the model has."""
    value = config(model).get(key) or ()
    addresses = (value,) if isinstance(value, str) else tuple(value)
    there = {address for address, _ in model.named_modules()}
    return tuple(address for address in addresses if address in there)


def heads(model: nn.Module) -> tuple[HeadClaim, ...]:
    """The classifiers; a second one learns from a teacher."""
    return tuple(
        HeadClaim(address, "distillation" if address.endswith("_dist") else "main")
        for address in named(model, "classifier")
    )


def headless(model: Any) -> bool:
    """Whether it says that it has no classes, and nobody put a layer where they would be made."""
    if getattr(model, "num_classes", None) != 0:
        return False
    there = (model.get_submodule(claim.address) for claim in heads(model))
    return not any(True for layer in there for _ in layer.parameters())


def example(model: Any) -> Example | None:
    """Two images: as small as it says it takes, as trained with, or as its patches are counted."""
    from surgery.graph.example import Example

    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    said = config(model)
    smallest = None if said.get("fixed_input_size") else said.get("min_input_size")
    sizes = smallest or said.get("input_size")
    if first is None or not sizes:
        return None
    counted = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return Example((first.new_zeros(2, channels(model, sizes[0]), *(counted or sizes[1:])),))


def channels(model: nn.Module, usual: int) -> int:
    """The channels that the first layer takes, which may see 2 by 2 or 4 by 4 pixels as one."""
    layers = (model.get_submodule(address) for address in named(model, "first_conv"))
    taken = next((n for layer in layers if (n := getattr(layer, "in_channels", None))), usual)
    return usual if taken in (4 * usual, 16 * usual) else int(taken)


def groups(model: Any) -> Stages:
    """The groups of parameters that timm makes of whole stages, without the classifiers."""
    first = next(iter(named(model, "first_conv")), "")
    return stages_of(model, tuple(claim.address for claim in heads(model)), first)


def stem(model: nn.Module) -> Stem:
    """The first group."""
    return next(iter(groups(model)), ())


def stages(model: nn.Module) -> Stages:
    """The others."""
    return groups(model)[1:]


def blocks(model: nn.Module) -> Stages:
    """The groups by which timm lets learning rates decay."""
    return blocks_of(model, tuple(claim.address for claim in heads(model)))


FAMILY = Family(
    name="timm",
    classes=("timm.*",),
    marker="forward_features",
    packages=("timm",),
    example=example,
    heads=heads,
    headless=headless,
    stem=stem,
    stages=stages,
    blocks=blocks,
    catalog=Catalog(registered, target),
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the models of timm."""
    return [FAMILY]
