"""MobileNet v2 and v3 and MNASNet as torchvision builds them.

Sandler et al., https://arxiv.org/abs/1801.04381; Howard et al.,
https://arxiv.org/abs/1905.02244; Tan et al., https://arxiv.org/abs/1807.11626. A stage of
MobileNet begins with the block that makes the features coarser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.grouping import group, halves

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages

STEM = ("features.0",)


def blocks(model: nn.Module) -> Stages:
    """The blocks between two changes of scale."""
    return group(model, "features", halves, STEM)


def blocks_and_hidden(model: nn.Module) -> Stages:
    """The blocks between two changes of scale, then the hidden layer of the classifier."""
    return (*blocks(model), ("classifier.0",))


V2 = Family(
    name="mobilenet_v2",
    classes=("torchvision.models.mobilenetv2.MobileNetV2",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=STEM,
    stages=blocks,
    catalog={"mobilenet_v2": "torchvision.models:mobilenet_v2"},
)

V3 = Family(
    name="mobilenet_v3",
    classes=("torchvision.models.mobilenetv3.MobileNetV3",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier.3"),),
    stem=STEM,
    stages=blocks_and_hidden,
    catalog={
        name: f"torchvision.models:{name}" for name in ("mobilenet_v3_large", "mobilenet_v3_small")
    },
)

MNASNET = Family(
    name="mnasnet",
    classes=("torchvision.models.mnasnet.MNASNet",),
    packages=("torchvision",),
    example=(2, "layers.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=("layers.0", "layers.1"),
    stages=(
        ("layers.3", "layers.4", "layers.6", "layers.7"),
        ("layers.8",),
        ("layers.9",),
        ("layers.10", "layers.11"),
        ("layers.12", "layers.13", "layers.14", "layers.15"),
    ),
    sync=("num_classes",),
    catalog={
        name: f"torchvision.models:{name}"
        for name in ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the three."""
    return [V2, V3, MNASNET]
