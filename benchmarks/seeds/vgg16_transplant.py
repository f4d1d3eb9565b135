"""Three layers of VGG-16 in a network of one's own for grey images.

Its layers ``features.0``, ``features.2`` and ``features.28`` go into a new network and stay as
they are; the new layers around them train.

Run with ``python -m benchmarks.seeds.vgg16_transplant``; the table goes to
``benchmarks/results/vgg16_transplant.md``.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import surgery

MAPPING = {"features.0": "conv2", "features.2": "conv3", "features.28": "conv5"}
RESULTS = Path(__file__).parents[1] / "results" / "vgg16_transplant.md"


def new_network() -> nn.Module:
    """Grey images of 224 x 224 pixels in, two classes out; conv2, conv3 and conv5 are VGG's."""
    convolutions = {
        "conv1": nn.Conv2d(1, 3, 3),
        "conv2": nn.Conv2d(3, 64, 3, padding=1),
        "conv3": nn.Conv2d(64, 64, 3, padding=1),
        "conv4": nn.Conv2d(64, 512, 3),
        "conv5": nn.Conv2d(512, 512, 3, padding=1),
    }
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (name, convolution) in enumerate(convolutions.items(), 1):
        layers[name] = convolution
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"], layers["relu6"] = nn.Linear(18432, 2048), nn.ReLU()
    layers["fc2"], layers["relu7"] = nn.Linear(2048, 1024), nn.ReLU()
    layers["fc3"] = nn.Linear(1024, 2)
    return nn.Sequential(layers)


def table(network: nn.Module, example: torch.Tensor) -> str:
    """What the network holds, and what it makes of a batch."""
    audit = surgery.audit(network)
    output = surgery.record(network, example).leaves[0].spec.shape
    lines = [
        "# Three layers of VGG-16 in a network for grey images",
        "",
        "| | |",
        "|---|---:|",
        f"| parameters | {audit.total:,} |",
        f"| trainable | {audit.trainable:,} ({audit.trainable_ratio:.2%}) |",
        f"| frozen | {audit.frozen:,} |",
        f"| {list(example.shape)} | {list(output)} |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    network = new_network()
    outcome = surgery.transplant(models.vgg16(), network, MAPPING, freeze=True)
    text = table(network, torch.zeros(16, 1, 224, 224))
    print(outcome)
    print()
    print(text)
    RESULTS.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
