"""RegNet X and Y as torchvision builds them (Radosavovic et al., https://arxiv.org/abs/2003.13678)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

SIZES = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")

FAMILY = Family(
    name="regnet",
    classes=("torchvision.models.regnet.RegNet",),
    packages=("torchvision",),
    example=(2, "stem.0.in_channels", 224, 224),
    heads=(HeadClaim("fc"),),
    stem=("stem",),
    stages=tuple((f"trunk_output.block{i}",) for i in (1, 2, 3, 4)),
    catalog={
        f"regnet_{variant}": f"torchvision.models:regnet_{variant}"
        for variant in (*(f"{kind}_{size}" for kind in "xy" for size in SIZES), "y_128gf")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register RegNet."""
    return [FAMILY]
