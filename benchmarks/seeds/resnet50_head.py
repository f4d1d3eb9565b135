"""ResNet-50 for five classes, of which only ``fc`` trains.

Run with ``python -m benchmarks.seeds.resnet50_head``; the table goes to
``benchmarks/results/resnet50_head.md``.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds.page import page, publish


def network() -> nn.Module:
    with torch.device("meta"):
        return models.resnet50()


def prepare(model: nn.Module) -> None:
    surgery.replace_head(model, 5)
    surgery.freeze(model, except_="heads")


def table() -> str:
    model = network()
    prepare(model)
    audit = surgery.audit(model)
    rows = [
        (address or "(directly)", tally.total, tally.trainable)
        for address, tally in audit.roll_up(1).items()
        if tally.total
    ]
    rows += [("in all", audit.total, audit.trainable)]
    columns = ("part", "parameters", "trainable")
    return page("ResNet-50 for five classes", columns, rows)


def main() -> None:
    publish(table(), "resnet50_head")


if __name__ == "__main__":
    main()
