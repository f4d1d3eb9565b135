"""DenseNet as torchvision builds it (Huang et al., https://arxiv.org/abs/1608.06993)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

# torchvision's own files still hold the names of 2017, in which `norm.1` meant `norm1`.
LEGACY = ((r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)

# Cadene's pretrainedmodels takes torchvision's model and calls its head by another name.
PRETRAINEDMODELS = (*LEGACY, (r"^last_linear\.", "classifier."))

FAMILY = Family(
    name="densenet",
    classes=("torchvision.models.densenet.DenseNet",),
    packages=("torchvision",),
    example=(2, "features.conv0.in_channels", 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=("features.conv0", "features.norm0"),
    stages=(
        ("features.denseblock1",),
        ("features.transition1", "features.denseblock2"),
        ("features.transition2", "features.denseblock3"),
        ("features.transition3", "features.denseblock4", "features.norm5"),
    ),
    renames={"torchvision legacy": LEGACY, "pretrainedmodels": PRETRAINEDMODELS},
    catalog={
        name: f"torchvision.models:{name}"
        for name in ("densenet121", "densenet161", "densenet169", "densenet201")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register DenseNet."""
    return [FAMILY]
