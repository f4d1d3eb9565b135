"""EfficientNet as the package efficientnet-pytorch builds it (Tan and Le, https://arxiv.org/abs/1905.11946).

Weights do not pass between it and torchvision by renaming: it pads as TensorFlow does.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.building import builder
from surgery_plugins.grouping import group

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages

VARIANTS = (*(f"b{i}" for i in range(9)), "l2")
FROM_NAME = "efficientnet_pytorch:EfficientNet.from_name"

builders = SimpleNamespace(
    **{variant: builder(FROM_NAME, f"efficientnet-{variant}") for variant in VARIANTS}
)


def widens(block: Any) -> bool:
    """Whether a block begins one of the paper's stages: the repeated ones keep their width."""
    options = block._block_args
    return bool(options.input_filters != options.output_filters)


def stages(model: nn.Module) -> Stages:
    """The paper's seven stages, then the convolution before the pooling."""
    return (*group(model, "_blocks", widens), ("_conv_head", "_bn1"))


FAMILY = Family(
    name="efficientnet_pytorch",
    classes=("efficientnet_pytorch.model.EfficientNet",),
    packages=("efficientnet_pytorch",),
    example=(2, "_conv_stem.in_channels", 224, 224),
    heads=(HeadClaim("_fc"),),
    stem=("_conv_stem", "_bn0"),
    stages=stages,
    sync=("_global_params.num_classes",),
    catalog={f"efficientnet-{variant}": f"{__name__}:builders.{variant}" for variant in VARIANTS},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the package's EfficientNet."""
    return [FAMILY]
