"""RAFT as torchvision builds it (Teed and Deng, https://arxiv.org/abs/2003.12039).

It estimates motion between two images: nothing in it makes classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgery.families import Family, hookimpl
from surgery_plugins.inputs import samples

if TYPE_CHECKING:
    from surgery.families.family import Stages
    from surgery.graph.example import Example

ENCODERS = ("feature_encoder", "context_encoder")


def example(model: Any) -> Example:
    """Two images each, and two updates: every update is the same layers again."""
    from surgery.graph.example import Example

    image = samples(model.feature_encoder, 128, 128)
    return Example((image, image), {"num_flow_updates": 2})


def stages(model: Any) -> Stages:
    """The two encoders side by side, then what is repeated."""
    trunk = tuple(
        tuple(f"{encoder}.{layer}" for encoder in ENCODERS)
        for layer in ("layer1", "layer2", "layer3", "conv")
    )
    mask = () if model.mask_predictor is None else ("mask_predictor",)
    return (*trunk, ("update_block", *mask))


FAMILY = Family(
    name="optical_flow",
    classes=("torchvision.models.optical_flow.raft.RAFT",),
    packages=("torchvision",),
    example=example,
    headless=True,
    stem=tuple(f"{encoder}.convnormrelu" for encoder in ENCODERS),
    stages=stages,
    catalog={
        name: f"torchvision.models.optical_flow:{name}" for name in ("raft_large", "raft_small")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register RAFT."""
    return [FAMILY]
