"""GoogLeNet for ten classes: find the head, replace it.

Run with ``python -m benchmarks.seeds.googlenet_head``; the table goes to
``benchmarks/results/googlenet_head.md``.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds.page import page, publish


def network(*, aux_logits: bool = False) -> nn.Module:
    """GoogLeNet as its pretrained weights come: without the auxiliary heads, if not asked for."""
    with torch.device("meta"):
        return models.googlenet(aux_logits=aux_logits, init_weights=False)


def table() -> str:
    model = network()
    before = surgery.find_heads(model)
    surgery.replace_head(model, 10)
    after = surgery.find_heads(model)
    rows = [
        (old.address, old.role, old.in_features, old.num_classes, new.num_classes)
        for old, new in zip(before, after, strict=True)
    ]
    columns = ("head", "role", "features in", "classes before", "classes after")
    return page("GoogLeNet for ten classes", columns, rows)


def main() -> None:
    publish(table(), "googlenet_head")


if __name__ == "__main__":
    main()
