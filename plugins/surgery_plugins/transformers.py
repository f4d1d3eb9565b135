"""Every model of Hugging Face's transformers: one base class, and a configuration that says it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgery.families import Catalog, Family, HeadClaim, hookimpl
from surgery.families.applied import attribute
from surgery_plugins.places import gathered
from surgery_plugins.transformers_catalog import find, listed
from surgery_plugins.transformers_inputs import example

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import HeadRole, Stages, Stem

# What the library calls the layers that make classes; some of its tasks have other things there.
HEADS = (
    *("classifier", "score", "classification_head", "cls_classifier"),
    *("logits_proj", "sequence_summary", "lm_head", "answer_head"),
    "model.decoder.output_projection",
)
# The layers that score where an answer starts and where it ends.
SPANS = ("qa_outputs", "qa_classifier", "splinter_qass", "start_logits", "end_logits", "classifier")
FROM_TEACHER = ("distillation_classifier", "classifier_distill")
# Where a configuration counts the classes by another name than ``num_labels``.
COUNTS = (
    *("config.head_config.num_speakers", "config.streaming_config.num_speakers"),
    *("config.num_qa_labels", "num_qa_labels"),
)
OTHER_TASKS = ("Detection", "Segmentation", "XVector")
# Its words are scored by two layers together, of which the library names one.
JOINED = ("MobileBert",)

# Layers and parameters of these names are in front of all others, wherever they are registered.
ENTRANCE = re.compile(r"embed|feature_extractor")


def heads(model: Any) -> tuple[HeadClaim, ...]:
    """The first layer with a usual name, where classes are the task, and that of a teacher."""
    if any(task in type(model).__name__ for task in OTHER_TASKS):
        return ()
    there = dict(model.named_modules())
    if "start_positions" in inspect.signature(model.forward).parameters:
        return tuple(HeadClaim(name, "span") for name in SPANS if name in there)
    role: HeadRole = "choice" if "MultipleChoice" in type(model).__name__ else "main"
    found = [name for name in HEADS if name in there]
    words = model.get_output_embeddings()
    if found[:1] == ["lm_head"] and words not in (None, *there["lm_head"].modules()):
        # What is called so may only stand in front of the layer that scores words.
        found = []
    if not found and not type(model).__name__.startswith(JOINED):
        found = [name for name, module in there.items() if module is words]
    sync = tuple(path for path in COUNTS if attribute(model, path) is not None)
    return (
        *(HeadClaim(name, role, sync=sync) for name in found[:1]),
        *(HeadClaim(name, "distillation") for name in FROM_TEACHER if name in there),
    )


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
