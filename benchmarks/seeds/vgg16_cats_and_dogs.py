"""VGG-16 for cats and dogs: everything frozen, two layers of its classifier new.

Run with ``python -m benchmarks.seeds.vgg16_cats_and_dogs``; the table goes to
``benchmarks/results/vgg16_cats_and_dogs.md``.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds.page import page, publish


def network() -> nn.Module:
    with torch.device("meta"):
        return models.vgg16()


def prepare(model: nn.Module) -> None:
    """Freeze everything, then put new layers in: what is new learns."""
    surgery.freeze(model)
    device = next(model.parameters()).device
    surgery.replace(model, {"classifier.3": nn.Linear(4096, 4096, device=device)})
    surgery.replace_head(model, classes=("cat", "dog"))


def listing(model: nn.Module) -> list[tuple[str, str, int, bool]]:
    """Every layer that has parameters: address, type, how many, and whether they learn."""
    return [
        (row.address, row.type, row.own.total, row.own.frozen == 0)
        for row in surgery.audit(model).rows
        if row.own.total
    ]


def table() -> str:
    model = network()
    prepare(model)
    audit = surgery.audit(model)
    return page(
        "VGG-16 for cats and dogs",
        ("layer", "type", "parameters", "trainable"),
        listing(model),
        f"{audit.trainable:,} of {audit.total:,} parameters are trainable "
        f"({audit.trainable_ratio:.2%}).",
    )


def main() -> None:
    publish(table(), "vgg16_cats_and_dogs")


if __name__ == "__main__":
    main()
