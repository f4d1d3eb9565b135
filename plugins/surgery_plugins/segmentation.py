"""FCN, DeepLab v3 and LR-ASPP as torchvision builds them.

Long et al., https://arxiv.org/abs/1411.4038; Chen et al., https://arxiv.org/abs/1706.05587;
Howard et al., https://arxiv.org/abs/1905.02244, whose head is two layers at two resolutions,
summed. The auxiliary classifier is claimed whole. The catalog downloads no backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.building import builder
from surgery_plugins.grouping import coarsens, group, halves, stem_of
from surgery_plugins.inputs import samples

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages
    from surgery.graph.example import Example

PLAIN = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
)
LRASPP_NAME = "lraspp_mobilenet_v3_large"
TARGET = "torchvision.models.segmentation"

builders = SimpleNamespace(
    **{name: builder(f"{TARGET}:{name}", weights_backbone=None) for name in (*PLAIN, LRASPP_NAME)},
    **{
        f"{name}_aux": builder(f"{TARGET}:{name}", weights_backbone=None, aux_loss=True)
        for name in PLAIN
    },
)


def example(model: Any) -> Example:
    """Small images: nothing here depends on their size."""
    from surgery.graph.example import Example

    return Example((samples(model.backbone, 64, 64),))


def stages(model: nn.Module) -> Stages:
    """The backbone, then the body of the classifier."""
    body = group(model, "classifier", lambda layer: False, without=("classifier.4",))
    return (*group(model, "backbone", coarsens, without=stem(model)), *body)


def stem(model: nn.Module) -> tuple[str, ...]:
    """What of the backbone reads the images."""
    return stem_of(model, "backbone")


def lraspp_stages(model: nn.Module) -> Stages:
    """The backbone, then what the two classifiers share."""
    trunk = group(model, "backbone", halves, without=("backbone.0",))
    return (*trunk, ("classifier.cbr", "classifier.scale"))


FAMILY = Family(
    name="segmentation",
    classes=(
        "torchvision.models.segmentation.fcn.FCN",
        "torchvision.models.segmentation.deeplabv3.DeepLabV3",
    ),
    packages=("torchvision",),
    example=example,
    heads=(HeadClaim("classifier.4"), HeadClaim("aux_classifier", "aux")),
    stem=stem,
    stages=stages,
    catalog={
        name: f"{__name__}:builders.{name}" for name in (*PLAIN, *(f"{name}_aux" for name in PLAIN))
    },
)

LRASPP = Family(
    name="lraspp",
    classes=("torchvision.models.segmentation.lraspp.LRASPP",),
    packages=("torchvision",),
    example=example,
    heads=(HeadClaim("classifier.low_classifier"), HeadClaim("classifier.high_classifier")),
    stem=("backbone.0",),
    stages=lraspp_stages,
    catalog={LRASPP_NAME: f"{__name__}:builders.{LRASPP_NAME}"},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register both."""
    return [FAMILY, LRASPP]
