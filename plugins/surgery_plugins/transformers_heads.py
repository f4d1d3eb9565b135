"""The layers of transformers' models that make classes, words, or scores of something else."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from surgery.families import HeadClaim
from surgery.families.applied import attribute

if TYPE_CHECKING:
    from surgery.families.family import HeadRole

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
# Its words are scored by two layers of one module together, of which the library names one; and
# by the table that reads them, of which it names none.
JOINED = ("MobileBert",)
TABLES = {"PerceiverForMaskedLM": "perceiver.input_preprocessor.embeddings"}


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
    if not found and type(model).__name__ in TABLES:
        found = [TABLES[type(model).__name__]]
    if not found:
        found = [name for name, module in there.items() if module is words]
    if type(model).__name__.startswith(JOINED):
        found = [name.rpartition(".")[0] if words is there[name] else name for name in found]
    sync = tuple(path for path in COUNTS if attribute(model, path) is not None)
    return (
        *(HeadClaim(name, role, sync=sync) for name in found[:1]),
        *(HeadClaim(name, "distillation") for name in FROM_TEACHER if name in there),
    )
