"""The six networks of PyTorch's fine-tuning tutorial: one preparation for all of them.

https://docs.pytorch.org/tutorials/beginner/finetuning_torchvision_models_tutorial.html has a case
for each. Here the head is found, replaced for two classes, and the rest frozen or not.

Run with ``python -m benchmarks.seeds.finetuning``; the table goes to
``benchmarks/results/finetuning.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

import surgery
from benchmarks.seeds.page import page, publish

NAMES = ("resnet18", "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "inception_v3")
# Left to itself, torchvision warns that its initialisation is going to change to this one.
KEYWORDS: dict[str, dict[str, Any]] = {"inception_v3": {"init_weights": False}}
AUXILIARY = 0.4


def network(name: str, weights: str | None = None) -> nn.Module:
    """A network of torchvision, with random weights or, by ``"DEFAULT"``, with its own."""
    return models.get_model(name, weights=weights, **KEYWORDS.get(name, {}))


def prepare(model: nn.Module, num_classes: int, *, feature_extraction: bool) -> None:
    """Replace the head; with feature extraction, only the head will learn."""
    surgery.replace_head(model, num_classes)
    if feature_extraction:
        surgery.freeze(model, except_="heads")


def to_learn(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def input_size(model: nn.Module) -> int:
    """Height and width of the images, in pixels."""
    nodes = surgery.record(model).nodes
    (shape,) = {node.outputs[0].shape for node in nodes if node.role == "input"}
    return shape[-1]


def loss(outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy, and 0.4 of the auxiliary head's where there is one."""
    if isinstance(outputs, torch.Tensor):
        return cross_entropy(outputs, labels)
    logits, auxiliary = outputs
    return cross_entropy(logits, labels) + AUXILIARY * cross_entropy(auxiliary, labels)


def table() -> str:
    rows = []
    for name in NAMES:
        with torch.device("meta"):
            model = network(name)
        prepare(model, 2, feature_extraction=True)
        audit = surgery.audit(model)
        learning = "<br>".join(f"`{parameter}`" for parameter in to_learn(model))
        rows.append((name, input_size(model), audit.total, audit.trainable, learning))
    return page(
        "Six networks for two classes",
        ("network", "input size", "parameters", "trainable", "to learn"),
        rows,
        "With feature extraction; without it all parameters are trainable.",
    )


def main() -> None:
    publish(table(), "finetuning")


if __name__ == "__main__":
    main()
