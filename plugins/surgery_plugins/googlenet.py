"""GoogLeNet as torchvision builds it (Szegedy et al., https://arxiv.org/abs/1409.4842).

The auxiliary classifiers are claimed whole: their bodies train and are thrown away with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.building import builder

# Left to itself, torchvision warns that its initialisation is going to change to this one.
googlenet = builder("torchvision.models:googlenet", init_weights=False)

FAMILY = Family(
    name="googlenet",
    classes=("torchvision.models.googlenet.GoogLeNet",),
    packages=("torchvision",),
    example=(2, "conv1.conv.in_channels", 224, 224),
    heads=(HeadClaim("fc"), HeadClaim("aux1", "aux"), HeadClaim("aux2", "aux")),
    stem=("conv1",),
    stages=(
        ("conv2", "conv3"),
        ("inception3a", "inception3b"),
        ("inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
        ("inception5a", "inception5b"),
    ),
    catalog={"googlenet": f"{__name__}:googlenet"},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register GoogLeNet."""
    return [FAMILY]
