"""ShuffleNet v2 as torchvision builds it (Ma et al., https://arxiv.org/abs/1807.11164)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

FAMILY = Family(
    name="shufflenet",
    classes=("torchvision.models.shufflenetv2.ShuffleNetV2",),
    packages=("torchvision",),
    example=(2, "conv1.0.in_channels", 224, 224),
    heads=(HeadClaim("fc"),),
    stem=("conv1",),
    stages=(("stage2",), ("stage3",), ("stage4", "conv5")),
    catalog={
        f"shufflenet_v2_{width}": f"torchvision.models:shufflenet_v2_{width}"
        for width in ("x0_5", "x1_0", "x1_5", "x2_0")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register ShuffleNet v2."""
    return [FAMILY]
