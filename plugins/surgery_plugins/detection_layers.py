"""The layers of torchvision's detectors, run without what chooses between boxes.

Proposals, box matching and non-maximum suppression depend on values and hold no parameter. Left
out, a detector is recorded like any other model: the region heads are run on the whole image in
place of the boxes found in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery_plugins.inputs import samples

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.graph.example import Example


def rcnn_forward(
    model: Any, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """Scores and boxes for one region an image, and masks and keypoints where they are made."""
    from torch.nn.functional import adaptive_avg_pool2d

    maps = feature_maps(model, images)
    model.rpn.head(maps)
    heads = model.roi_heads

    def region(pooling: Any) -> Tensor:
        return adaptive_avg_pool2d(maps[0], pooling.output_size)

    scores, boxes = heads.box_predictor(heads.box_head(region(heads.box_roi_pool)))
    found = {"scores": scores, "boxes": boxes}
    if heads.mask_predictor is not None:
        found["masks"] = heads.mask_predictor(heads.mask_head(region(heads.mask_roi_pool)))
    if heads.keypoint_predictor is not None:
        features = heads.keypoint_head(region(heads.keypoint_roi_pool))
        found["keypoints"] = heads.keypoint_predictor(features)
    return found


def dense_forward(
    model: Any, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The class scores of every anchor, (images, anchors, classes)."""
    return {"scores": model.head(feature_maps(model, images))["cls_logits"]}


def feature_maps(model: Any, images: list[Tensor]) -> list[Tensor]:
    """The feature maps that the heads read, from images of any sizes."""
    batch, _ = model.transform(images)
    features = model.backbone(batch.tensors)
    return list(features.values()) if isinstance(features, Mapping) else [features]


def rcnn_example(model: Any) -> Example:
    """Two small images, and for train mode a box in each, with a mask and keypoints if wanted."""
    from surgery.graph.example import Example

    images = list(samples(model.backbone, 64, 64))
    heads = model.roi_heads
    targets = _targets(images)
    for target in targets:
        if heads.mask_predictor is not None:
            target["masks"] = images[0].new_ones(1, 64, 64)
        if heads.keypoint_predictor is not None:
            count = heads.keypoint_predictor.kps_score_lowres.out_channels
            target["keypoints"] = images[0].new_full((1, count, 3), 16.0)
    return Example((images,), train=Example((images, targets)), forward=rcnn_forward)


def dense_example(model: Any) -> Example:
    """Two small images, and for train mode a box in each."""
    from surgery.graph.example import Example

    images = list(samples(model.backbone, 64, 64))
    train = Example((images, _targets(images)))
    return Example((images,), train=train, forward=dense_forward)


def _targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    box = images[0].new_tensor([[8.0, 8.0, 40.0, 40.0]])
    return [{"boxes": box, "labels": box.new_ones(1).long()} for _ in images]
