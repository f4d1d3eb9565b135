"""VGG with and without batch normalisation, as torchvision builds it.

Simonyan and Zisserman, https://arxiv.org/abs/1409.1556. A stage ends where the trunk pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.grouping import group, pools

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages

STEM = ("features.0",)


def stages(model: nn.Module) -> Stages:
    """The convolutions between two poolings, then the two hidden layers of the classifier."""
    hidden = group(model, "classifier", without=("classifier.6",))
    return (*group(model, "features", pools, STEM), *hidden)


FAMILY = Family(
    name="vgg",
    classes=("torchvision.models.vgg.VGG",),
    packages=("torchvision",),
    example=(2, "features.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier.6"),),
    stem=STEM,
    stages=stages,
    catalog={
        f"vgg{depth}{norm}": f"torchvision.models:vgg{depth}{norm}"
        for depth in (11, 13, 16, 19)
        for norm in ("", "_bn")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register VGG."""
    return [FAMILY]
