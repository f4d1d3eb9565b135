"""SqueezeNet as torchvision builds it (Iandola et al., https://arxiv.org/abs/1602.07360).

Its head is a convolution before the global pooling. A stage ends where the trunk pools.
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
    """The fire modules between two poolings."""
    return group(model, "features", pools, STEM)


FAMILY = Family(
    name="squeezenet",
    classes=("torchvision.models.squeezenet.SqueezeNet",),
    packages=("torchvision",),
    example=(2, "features.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=STEM,
    stages=stages,
    sync=("num_classes",),
    catalog={name: f"torchvision.models:{name}" for name in ("squeezenet1_0", "squeezenet1_1")},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register SqueezeNet."""
    return [FAMILY]
