"""AlexNet as torchvision builds it (Krizhevsky, https://arxiv.org/abs/1404.5997)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

FAMILY = Family(
    name="alexnet",
    classes=("torchvision.models.alexnet.AlexNet",),
    packages=("torchvision",),
    example=(2, "features.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier.6"),),
    stem=("features.0",),
    stages=(
        ("features.3",),
        ("features.6",),
        ("features.8",),
        ("features.10",),
        ("classifier.1",),
        ("classifier.4",),
    ),
    catalog={"alexnet": "torchvision.models:alexnet"},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register AlexNet."""
    return [FAMILY]
