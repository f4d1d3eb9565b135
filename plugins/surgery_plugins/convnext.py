"""ConvNeXt as torchvision builds it (Liu et al., https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

FAMILY = Family(
    name="convnext",
    classes=("torchvision.models.convnext.ConvNeXt",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier.2"),),
    stem=("features.0",),
    stages=(
        ("features.1",),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "classifier.0"),
    ),
    catalog={
        f"convnext_{size}": f"torchvision.models:convnext_{size}"
        for size in ("tiny", "small", "base", "large")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register ConvNeXt."""
    return [FAMILY]
