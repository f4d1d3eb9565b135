"""EfficientNet v1 and v2 as torchvision builds them: one class.

Tan and Le, https://arxiv.org/abs/1905.11946 and https://arxiv.org/abs/2104.00298.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.efficientnet_depths import DEPTHS, places
from surgery_plugins.grouping import group

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Rules, Stages

STEM = ("features.0",)

# efficientnet-pytorch's names. Its first stage does not expand, which shifts what follows.
PACKAGE = (
    (r"^_conv_stem\.", "features.0.0."),
    (r"^_bn0\.", "features.0.1."),
    (r"^_conv_head\.", "features.8.0."),
    (r"^_bn1\.", "features.8.1."),
    (r"^_fc\.", "classifier.1."),
    (r"^(features\.1\.\d+)\._depthwise_conv\.", r"\1.block.0.0."),
    (r"^(features\.1\.\d+)\._bn1\.", r"\1.block.0.1."),
    (r"^(features\.1\.\d+)\._se_reduce\.", r"\1.block.1.fc1."),
    (r"^(features\.1\.\d+)\._se_expand\.", r"\1.block.1.fc2."),
    (r"^(features\.1\.\d+)\._project_conv\.", r"\1.block.2.0."),
    (r"^(features\.1\.\d+)\._bn2\.", r"\1.block.2.1."),
    (r"\._expand_conv\.", ".block.0.0."),
    (r"\._bn0\.", ".block.0.1."),
    (r"\._depthwise_conv\.", ".block.1.0."),
    (r"\._bn1\.", ".block.1.1."),
    (r"\._se_reduce\.", ".block.2.fc1."),
    (r"\._se_expand\.", ".block.2.fc2."),
    (r"\._project_conv\.", ".block.3.0."),
    (r"\._bn2\.", ".block.3.1."),
)


def stages(model: nn.Module) -> Stages:
    """The paper's stages (six or seven), then the convolution before the pooling."""
    return group(model, "features", without=STEM)


def blocks(depth: float) -> Rules:
    """The stages of a variant, out of the one row of blocks that the package has."""
    return tuple(
        (rf"^_blocks\.{number}\.", f"features.{stage + 1}.{block}.")
        for number, stage, block in places(depth)
    )


# It pads as TensorFlow does and torchvision evenly: the weights fit, the output differs a little.
FAMILY = Family(
    name="efficientnet",
    classes=("torchvision.models.efficientnet.EfficientNet",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=STEM,
    stages=stages,
    renames={
        f"efficientnet-pytorch, {variant}": (*blocks(depth), *PACKAGE) for variant, depth in DEPTHS
    },
    catalog={
        f"efficientnet_{variant}": f"torchvision.models:efficientnet_{variant}"
        for variant in (*(f"b{i}" for i in range(8)), "v2_s", "v2_m", "v2_l")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register EfficientNet."""
    return [FAMILY]
