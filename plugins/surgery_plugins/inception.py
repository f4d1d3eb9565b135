"""Inception v3 as torchvision builds it (Szegedy et al., https://arxiv.org/abs/1512.00567).

The auxiliary classifier is claimed whole: its body trains and is thrown away with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.building import builder

# Left to itself, torchvision warns that its initialisation is going to change to this one.
inception_v3 = builder("torchvision.models:inception_v3", init_weights=False)

# Cadene's pretrainedmodels takes torchvision's model and calls its head by another name.
PRETRAINEDMODELS = ((r"^last_linear\.", "fc."),)

FAMILY = Family(
    name="inception",
    classes=("torchvision.models.inception.Inception3",),
    packages=("torchvision",),
    example=(2, "Conv2d_1a_3x3.conv.in_channels", 299, 299),
    heads=(HeadClaim("fc"), HeadClaim("AuxLogits", "aux")),
    stem=("Conv2d_1a_3x3",),
    stages=(
        ("Conv2d_2a_3x3", "Conv2d_2b_3x3"),
        ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        ("Mixed_5b", "Mixed_5c", "Mixed_5d"),
        ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    ),
    renames={"pretrainedmodels": PRETRAINEDMODELS},
    catalog={"inception_v3": f"{__name__}:inception_v3"},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register Inception v3."""
    return [FAMILY]
