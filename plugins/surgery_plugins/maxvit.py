"""MaxViT as torchvision builds it (Tu et al., https://arxiv.org/abs/2204.01697)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

FAMILY = Family(
    name="maxvit",
    classes=("torchvision.models.maxvit.MaxVit",),
    packages=("torchvision",),
    example=(2, "stem.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier.5"),),
    stem=("stem",),
    stages=(
        ("blocks.0",),
        ("blocks.1",),
        ("blocks.2",),
        ("blocks.3",),
        ("classifier.2", "classifier.3"),
    ),
    catalog={"maxvit_t": "torchvision.models:maxvit_t"},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register MaxViT."""
    return [FAMILY]
