"""The layers of torchvision's detectors, run without what chooses between boxes; their stages.

Proposals, box matching and non-maximum suppression depend on values and hold no parameter. Left
out, a detector is recorded like any other model: the region heads are run on the whole image in
place of the boxes found in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery_plugins.grouping import always, coarsens, group, pools, stem_of
from surgery_plugins.inputs import samples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from surgery.families.family import Stages
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


def rcnn_stages(model: Any) -> Stages:
    """The backbone, the pyramid, the proposals, and what the predictors read."""
    heads = model.roi_heads
    regions = ["roi_heads.box_head"]
    if heads.mask_predictor is not None:
        regions += ["roi_heads.mask_head", "roi_heads.mask_predictor.conv5_mask"]
    if heads.keypoint_predictor is not None:
        regions.append("roi_heads.keypoint_head")
    return (*_pyramid(model), ("rpn",), tuple(regions))


def dense_stages(model: nn.Module) -> Stages:
    """The backbone, the pyramid, and the two towers over each of its maps."""
    return (*_pyramid(model), ("head.classification_head.conv", "head.regression_head"))


def ssd_stages(model: Any) -> Stages:
    """The backbone, its further maps, and what predicts boxes."""
    (stem,) = ssd_stem(model)
    inside = stem.count(".") > 2
    first = group(model, "backbone.features.0", always, without=(stem,)) if inside else ()
    begun = ("backbone.features.0",) if inside else (stem,)
    trunk = (*first, *group(model, "backbone.features", pools, without=begun))
    more = [f"backbone.{name}" for name, _ in model.backbone.named_parameters(recurse=False)]
    return (*trunk, (*more, "backbone.extra"), ("head.regression_head",))


def pyramid_stem(model: nn.Module) -> tuple[str, ...]:
    """What of the backbone reads the images."""
    return stem_of(model, "backbone.body")


def ssd_stem(model: nn.Module) -> tuple[str, ...]:
    """The first convolution, or the first block with its norm."""
    features = model.get_submodule("backbone.features.0")
    inner = [f"backbone.features.0.{name}" for name, _ in features.named_children()]
    return tuple(inner[:1]) or ("backbone.features.0",)


def _pyramid(model: nn.Module) -> Stages:
    trunk = group(model, "backbone.body", coarsens, without=pyramid_stem(model))
    return (*trunk, ("backbone.fpn",))
