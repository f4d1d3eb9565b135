"""Adapters of Hugging Face's peft, around layers and around whole models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.families import Wrapping, hookimpl

if TYPE_CHECKING:
    from torch import nn

SIZED = (
    "its adapters are made for the sizes of the layer, merged into it or not, and those that are "
    "not active would keep them"
)


def sizes(layer: nn.Module, inside: str, filled: bool) -> str:
    """Other values fit in; other sizes do not."""
    return "" if filled else SIZED


MODEL = Wrapping(
    "model with adapters",
    classes=("peft.peft_model.PeftModel", "peft.mixed_model.PeftMixedModel"),
    carries="base_model.model",
)
SAVED = Wrapping(
    "layer kept for each adapter",
    classes=("peft.utils.other.ModulesToSaveWrapper",),
    copies=("original_module", "modules_to_save.*"),
)
ADAPTED = Wrapping(
    "layer with adapters",
    classes=("peft.tuners.tuners_utils.BaseTunerLayer",),
    refuses=sizes,
    remedy="model = model.merge_and_unload(), operate, then peft.get_peft_model(model, config) "
    "with this layer in modules_to_save and not in target_modules",
)
WRAPPINGS = (MODEL, SAVED, ADAPTED)


@hookimpl
def surgery_wrappings() -> Sequence[Wrapping]:
    """Register the adapters of peft."""
    return WRAPPINGS
