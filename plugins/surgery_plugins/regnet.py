"""RegNet X and Y as torchvision builds them (Radosavovic et al., https://arxiv.org/abs/2003.13678)."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

SIZES = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")

# timm counts blocks from one; no stage of these models has more than thirty.
TIMM = (
    *(
        (rf"^s(\d)\.b{block + 1}\.", rf"trunk_output.block\1.block\1-{block}.")
        for block in range(30)
    ),
    (r"\.conv1\.", ".f.a."),
    (r"\.conv2\.", ".f.b."),
    (r"\.conv3\.", ".f.c."),
    (r"\.se\.", ".f.se."),
    (r"\.downsample\.", ".proj."),
    (r"^((?:stem|trunk_output)\..*?)conv\.", r"\g<1>0."),
    (r"^((?:stem|trunk_output)\..*?)bn\.", r"\g<1>1."),
    (r"^head\.fc\.", "fc."),
)

FAMILY = Family(
    name="regnet",
    classes=("torchvision.models.regnet.RegNet",),
    packages=("torchvision",),
    example=(2, "stem.0.in_channels", 224, 224),
    heads=(HeadClaim("fc"),),
    stem=("stem",),
    stages=tuple((f"trunk_output.block{i}",) for i in (1, 2, 3, 4)),
    renames={"timm": TIMM},
    catalog={
        f"regnet_{variant}": f"torchvision.models:regnet_{variant}"
        for variant in (*(f"{kind}_{size}" for kind in "xy" for size in SIZES), "y_128gf")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register RegNet."""
    return [FAMILY]
