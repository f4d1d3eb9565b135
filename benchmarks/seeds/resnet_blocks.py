"""ResNet, ResNeXt and Wide ResNet by block: where the parameters are, and what a bottleneck saves.

Run with ``python -m benchmarks.seeds.resnet_blocks``; the table goes to
``benchmarks/results/resnet_blocks.md``.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds.page import page, publish

NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
STAGES = ("layer1", "layer2", "layer3", "layer4")


def network(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.get_model(name)


def blocks(model: nn.Module) -> dict[str, int]:
    """Parameters of every block, and of the layers before and after them."""
    stages = surgery.audit(model).roll_up(2)
    return {address: tally.total for address, tally in stages.items() if tally.total}


def convolutions(model: nn.Module, block: str) -> dict[str, int]:
    """The weights of a block's convolutions."""
    return {
        row.address: row.total
        for row in surgery.audit(model).rows
        if row.address.startswith(f"{block}.") and row.type == "Conv2d"
    }


def by_stage(model: nn.Module) -> list[str]:
    """Of each stage its blocks, those of one size as ``5 x 1,117,184``."""
    counted = blocks(model)
    return [
        ", ".join(
            f"{len(list(run))} x {size:,}"
            for size, run in groupby(
                count for address, count in counted.items() if address.startswith(f"{stage}.")
            )
        )
        for stage in STAGES
    ]


def saving() -> str:
    """What a bottleneck of 256 channels holds, beside the plain layers it stands for."""
    narrow = tuple(convolutions(network("resnet50"), "layer1.1").values())
    plain = tuple(convolutions(network("resnet34"), "layer3.1").values())
    return (
        f"A bottleneck 256-64-64-256 (`layer1.1` of ResNet-50) holds "
        f"{' + '.join(f'{count:,}' for count in narrow)} = {sum(narrow):,} convolution weights. "
        f"The two 3 x 3 layers of 256 channels in `layer3.1` of ResNet-34 hold "
        f"{' + '.join(f'{count:,}' for count in plain)} = {sum(plain):,}."
    )


def table() -> str:
    rows = []
    for name in NAMES:
        model = network(name)
        audit = surgery.audit(model)
        rows.append((name, audit.at("layer1.0").type, *by_stage(model), audit.total))
    return page(
        "Residual networks by block",
        ("network", "block", *STAGES, "parameters"),
        rows,
        "Blocks of a stage, those of one size together, with the parameters of each. The first "
        "of a stage also holds the projection, where there is one.",
        saving(),
    )


def main() -> None:
    publish(table(), "resnet_blocks")


if __name__ == "__main__":
    main()
