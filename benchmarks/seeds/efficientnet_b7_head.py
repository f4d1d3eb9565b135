"""EfficientNet-B7 of the package efficientnet-pytorch, with a deeper head for five classes.

``_fc`` goes from 2560 features over 4096 and 2048 to 5, with ReLU and dropout between.

Run with ``python -m benchmarks.seeds.efficientnet_b7_head``; the table goes to
``benchmarks/results/efficientnet_b7_head.md``.
"""

from __future__ import annotations

import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

import surgery
from benchmarks.seeds.page import page, publish


def network() -> nn.Module:
    with torch.device("meta"):
        return EfficientNet.from_name("efficientnet-b7")


def prepare(model: nn.Module) -> surgery.Outcome:
    return surgery.replace_head(model, 5, hidden=(4096, 2048), dropout=0.5)


def table(outcome: surgery.Outcome) -> str:
    model = outcome.model
    audit = surgery.audit(model)
    rows = [
        (f"`{address}`", f"`{module}`", audit.at(address).total or None)
        for address, module in model.named_modules()
        if address == "_dropout" or address.startswith("_fc.")
    ]
    return page(
        "EfficientNet-B7 with a deeper head",
        ("address", "layer", "parameters"),
        rows,
        "{:,} parameters before, {:,} after.".format(*outcome.plan.parameters),
    )


def main() -> None:
    publish(table(prepare(network())), "efficientnet_b7_head")


if __name__ == "__main__":
    main()
