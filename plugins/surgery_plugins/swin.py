"""Swin Transformer v1 and v2 as torchvision builds them: one class.

Liu et al., https://arxiv.org/abs/2103.14030 and https://arxiv.org/abs/2111.09883.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

# timm has a stage begin with its patch merging, and torchvision counts that as a layer.
TIMM = (
    (r"^patch_embed\.proj\.", "features.0.0."),
    (r"^patch_embed\.norm\.", "features.0.2."),
    (r"^layers\.0\.blocks\.", "features.1."),
    (r"^layers\.1\.downsample\.", "features.2."),
    (r"^layers\.1\.blocks\.", "features.3."),
    (r"^layers\.2\.downsample\.", "features.4."),
    (r"^layers\.2\.blocks\.", "features.5."),
    (r"^layers\.3\.downsample\.", "features.6."),
    (r"^layers\.3\.blocks\.", "features.7."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^head\.fc\.", "head."),
)

FAMILY = Family(
    name="swin",
    classes=("torchvision.models.swin_transformer.SwinTransformer",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("head"),),
    stem=("features.0",),
    stages=(
        ("features.1",),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "norm"),
    ),
    sync=("num_classes",),
    renames={"timm": TIMM},
    catalog={
        f"swin_{size}": f"torchvision.models:swin_{size}"
        for size in ("t", "s", "b", "v2_t", "v2_s", "v2_b")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register Swin."""
    return [FAMILY]
