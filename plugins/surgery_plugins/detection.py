"""Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite as torchvision builds them.

Ren et al., https://arxiv.org/abs/1506.01497; He et al., https://arxiv.org/abs/1703.06870; Lin et
al., https://arxiv.org/abs/1708.02002; Tian et al., https://arxiv.org/abs/1904.01355; Liu et al.,
https://arxiv.org/abs/1512.02325. Which boxes there are depends on values, so what is recorded runs
every layer and nothing that chooses between boxes (detection_layers.py). torchvision counts the
background as class 0 in the weights of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from surgery.families import Family, HeadClaim, hookimpl
from surgery_plugins.building import builder
from surgery_plugins.detection_layers import dense_example, rcnn_example
from surgery_plugins.detection_stages import (
    dense_stages,
    pyramid_stem,
    rcnn_stages,
    ssd_stages,
    ssd_stem,
)

TARGET = "torchvision.models.detection"
BACKGROUND = "__background__"

RCNN_NAMES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
DENSE_NAMES = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
SSD_NAMES = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")

builders = SimpleNamespace(
    **{
        name: builder(f"{TARGET}:{name}", weights_backbone=None)
        for name in (*RCNN_NAMES, *DENSE_NAMES, *SSD_NAMES)
    }
)


def catalog(*names: str) -> dict[str, str]:
    """Builders that download no backbone."""
    return {name: f"{__name__}:builders.{name}" for name in names}


RCNN = Family(
    name="rcnn",
    classes=(f"{TARGET}.generalized_rcnn.GeneralizedRCNN",),
    packages=("torchvision",),
    example=rcnn_example,
    heads=(
        HeadClaim("roi_heads.box_predictor.cls_score"),
        HeadClaim("roi_heads.box_predictor.bbox_pred", "coupled", factor=4),
        HeadClaim(
            "roi_heads.mask_predictor.mask_fcn_logits",
            "coupled",
            init=("kaiming_normal_", 0, "fan_out", "relu"),
        ),
        HeadClaim(
            "roi_heads.keypoint_predictor.kps_score_lowres",
            "keypoints",
            sync=("roi_heads.keypoint_predictor.out_channels",),
            init=("kaiming_normal_", 0, "fan_out", "relu"),
            bias=0.0,
        ),
    ),
    background=BACKGROUND,
    stem=pyramid_stem,
    stages=rcnn_stages,
    catalog=catalog(*RCNN_NAMES),
)

# The bias says at the start that one box in a hundred holds an object, as the focal loss needs.
DENSE = Family(
    name="dense_detection",
    classes=(f"{TARGET}.retinanet.RetinaNet", f"{TARGET}.fcos.FCOS"),
    packages=("torchvision",),
    example=dense_example,
    heads=(
        HeadClaim(
            "head.classification_head.cls_logits",
            init=("normal_", 0.0, 0.01),
            bias=-4.59511985013459,
        ),
    ),
    notes=("torchvision's weights count the background as class 0, which the model treats alike",),
    stem=pyramid_stem,
    stages=dense_stages,
    renames={"version 1": ((r"(_head\.conv\.\d)\.(?=weight|bias)", r"\1.0."),)},
    sync=("head.classification_head.num_classes",),
    catalog=catalog(*DENSE_NAMES),
)

SSD = Family(
    name="ssd",
    classes=(f"{TARGET}.ssd.SSD",),
    packages=("torchvision",),
    example=dense_example,
    heads=(HeadClaim("head.classification_head", init=("xavier_uniform_",), bias=0.0),),
    background=BACKGROUND,
    stem=ssd_stem,
    stages=ssd_stages,
    sync=("head.classification_head.num_columns",),
    catalog=catalog(*SSD_NAMES),
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the three."""
    return [RCNN, DENSE, SSD]
