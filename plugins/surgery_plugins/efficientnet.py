"""EfficientNet v1 and v2 as torchvision builds them: one class.

Tan and Le, https://arxiv.org/abs/1905.11946 and https://arxiv.org/abs/2104.00298.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.grouping import group

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages

STEM = ("features.0",)


def stages(model: nn.Module) -> Stages:
    """The paper's stages (six or seven), then the convolution before the pooling."""
    return group(model, "features", without=STEM)


FAMILY = Family(
    name="efficientnet",
    classes=("torchvision.models.efficientnet.EfficientNet",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=STEM,
    stages=stages,
    catalog={
        f"efficientnet_{variant}": f"torchvision.models:efficientnet_{variant}"
        for variant in (*(f"b{i}" for i in range(8)), "v2_s", "v2_m", "v2_l")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register EfficientNet."""
    return [FAMILY]
