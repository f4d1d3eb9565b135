"""AlexNet as of 2012, layer by layer: what comes out of each, and how many parameters it has.

Without the groups that two graphics cards needed (Krizhevsky et al., "ImageNet Classification with
Deep Convolutional Neural Networks", NeurIPS 2012). torchvision's ``alexnet`` is a later, narrower
one.

Run with ``python -m benchmarks.seeds.alexnet_layers``; the table goes to
``benchmarks/results/alexnet_layers.md``.
"""

from __future__ import annotations

import torch
from torch import nn

import surgery
from benchmarks.seeds.page import page, publish

EXAMPLE = torch.zeros(1, 3, 227, 227, device="meta")
MISPRINT = (
    "The second convolution is sometimes printed with 221,440 parameters. That is the count for a "
    "kernel of 3 x 3 (96 x 256 x 9 + 256); AlexNet's is 5 x 5 there: 96 x 256 x 25 + 256 = 614,656."
)


def network() -> nn.Module:
    """Images of 227 x 227 pixels in, 1,000 classes out."""
    with torch.device("meta"):
        return nn.Sequential(
            *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            nn.Flatten(),
            *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, 1000),
        )


def layers(model: nn.Module) -> list[tuple[str, list[int], int]]:
    """Type, output without the batch, and parameters of every layer, from the layer table."""
    return [
        (layer.class_name, layer.output_size[1:], layer.num_params)
        for layer in surgery.summary(model, EXAMPLE).summary_list
        if layer.is_leaf_layer
    ]


def table() -> str:
    model = network()
    rows = [
        (kind, " x ".join(map(str, (*shape[1:], shape[0]))), count or None)
        for kind, shape, count in layers(model)
    ]
    rows += [("in all", None, surgery.audit(model).total)]
    return page("AlexNet, 2012", ("layer", "output", "parameters"), rows, MISPRINT)


def main() -> None:
    publish(table(), "alexnet_layers")


if __name__ == "__main__":
    main()
