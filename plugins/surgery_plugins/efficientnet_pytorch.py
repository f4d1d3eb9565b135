"""EfficientNet as the package efficientnet-pytorch builds it (Tan and Le, https://arxiv.org/abs/1905.11946).

It pads as TensorFlow does. So do timm's ``tf_efficientnet_*``: renamed, their weights give the same
output. torchvision pads evenly: its weights fit (those of B5 to B7 came from this package) and the
output is a little different.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.building import builder
from surgery_plugins.efficientnet_depths import DEPTHS, REPEATS, places
from surgery_plugins.grouping import group
from surgery_plugins.static_padding import resize

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Rules, Stages

VARIANTS = (*(f"b{i}" for i in range(9)), "l2")
FROM_NAME = "efficientnet_pytorch:EfficientNet.from_name"

builders = SimpleNamespace(
    **{variant: builder(FROM_NAME, f"efficientnet-{variant}") for variant in VARIANTS}
)

# torchvision's names first become timm's. The first stage does not expand, which shifts the names
# within its blocks in either.
TORCHVISION = (
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^features\.8\.0\.", "conv_head."),
    (r"^features\.8\.1\.", "bn2."),
    (r"^classifier\.1\.", "classifier."),
    *((rf"^features\.{stage + 1}\.", f"blocks.{stage}.") for stage in range(len(REPEATS))),
    (r"\.block\.\d\.fc1\.", ".se.conv_reduce."),
    (r"\.block\.\d\.fc2\.", ".se.conv_expand."),
    (r"^(blocks\.0\.\d+)\.block\.0\.0\.", r"\1.conv_dw."),
    (r"^(blocks\.0\.\d+)\.block\.2\.0\.", r"\1.conv_pw."),
    (r"^(blocks\.0\.\d+)\.block\.2\.1\.", r"\1.bn2."),
    (r"\.block\.0\.0\.", ".conv_pw."),
    (r"\.block\.0\.1\.", ".bn1."),
    (r"\.block\.1\.0\.", ".conv_dw."),
    (r"\.block\.1\.1\.", ".bn2."),
    (r"\.block\.3\.0\.", ".conv_pwl."),
    (r"\.block\.3\.1\.", ".bn3."),
)
TIMM = (
    (r"^bn1\.", "_bn0."),
    (r"^bn2\.", "_bn1."),
    (r"^classifier\.", "_fc."),
    (r"^(conv_stem|conv_head)\.", r"_\1."),
    (r"\.se\.conv_", "._se_"),
    (r"\.conv_dw\.", "._depthwise_conv."),
    (r"\.conv_pwl\.", "._project_conv."),
    (r"^(blocks\.0\.\d+)\.conv_pw\.", r"\1._project_conv."),
    (r"^(blocks\.0\.\d+)\.bn(\d)\.", r"\1._bn\2."),
    (r"\.conv_pw\.", "._expand_conv."),
    (r"\.bn1\.", "._bn0."),
    (r"\.bn2\.", "._bn1."),
    (r"\.bn3\.", "._bn2."),
)


def blocks(depth: float) -> Rules:
    """The blocks in one row, as the package has them, for a variant with so many in a stage."""
    return tuple(
        (rf"^blocks\.{stage}\.{block}\.", f"_blocks.{number}.")
        for number, stage, block in places(depth)
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
    renames={
        f"torchvision or timm, {variant}": (*TORCHVISION, *TIMM, *blocks(depth))
        for variant, depth in DEPTHS
    },
    sync=("_global_params.num_classes",),
    resize=resize,
    catalog={f"efficientnet-{variant}": f"{__name__}:builders.{variant}" for variant in VARIANTS},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the package's EfficientNet."""
    return [FAMILY]
