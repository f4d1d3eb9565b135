"""Every model of Hugging Face's transformers: one base class, and a configuration that says it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.families import Catalog, Family, hookimpl
from surgery_plugins.places import gathered
from surgery_plugins.transformers_catalog import find, listed
from surgery_plugins.transformers_heads import heads
from surgery_plugins.transformers_inputs import example

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages, Stem

# Layers and parameters of these names are in front of all others, wherever they are registered.
ENTRANCE = re.compile(r"embed|feature_extractor")


def groups(model: nn.Module) -> Stages:
    """A group for every layer of the outermost lists; what stands before the first is the stem."""
    lists: list[str] = []
    for address, module in model.named_modules():
        listed = type(module).__name__ == "ModuleList" and not ENTRANCE.search(address)
        if listed and not address.startswith(tuple(lists)):
            lists.append(f"{address}.")
    without = tuple(f"{claim.address}." for claim in heads(model))
    found: dict[str, list[str]] = {"": []}
    for name, _ in model.named_parameters():
        holder = next((place for place in lists if name.startswith(place)), "")
        # Lists side by side hold the pieces of one layer.
        parent = holder.removesuffix(".").rpartition(".")[0]
        number = name.removeprefix(holder).partition(".")[0]
        here = f"{parent} {number}" if holder else ""
        # Embeddings may be registered behind the layers that read them.
        last = "" if here or ENTRANCE.search(name) else next(reversed(found))
        if not name.startswith(without):
            found.setdefault(here or last, []).append(name)
    taking = (
        name
        for name in found[""]
        if name.endswith("weight")
        and "position" not in name
        and model.get_parameter(name).dim() > 1
    )
    stages = gathered(model, [*found.values()], next(taking, ""))
    return stages if found[""] else ((), *stages)


def stem(model: nn.Module) -> Stem:
    """What comes before the layers."""
    return next(iter(groups(model)), ())


def stages(model: nn.Module) -> Stages:
    """One for every layer, with what follows it."""
    return groups(model)[1:]


FAMILY = Family(
    name="transformers",
    classes=("transformers.modeling_utils.PreTrainedModel",),
    packages=("transformers",),
    example=example,
    heads=heads,
    stem=stem,
    stages=stages,
    catalog=Catalog(listed, find),
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the models of transformers."""
    return [FAMILY]
