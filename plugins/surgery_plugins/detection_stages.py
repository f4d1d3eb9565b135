"""Stems and stages of torchvision's detectors: the backbone, the pyramid, what predictors read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery_plugins.grouping import always, coarsens, group, pools, stem_of

if TYPE_CHECKING:
    from surgery.families.family import Stages


def rcnn_stages(model: Any) -> Stages:
    """The backbone, the pyramid, the proposals, and what the predictors read."""
    heads = model.roi_heads
    regions = ["roi_heads.box_head"]
    if heads.mask_predictor is not None:
        regions += ["roi_heads.mask_head", "roi_heads.mask_predictor.conv5_mask"]
    if heads.keypoint_predictor is not None:
        regions.append("roi_heads.keypoint_head")
    return (*_pyramid(model), ("rpn",), tuple(regions))


def dense_stages(model: Any) -> Stages:
    """The backbone, the pyramid, and the two towers over each of its maps."""
    return (*_pyramid(model), ("head.classification_head.conv", "head.regression_head"))


def ssd_stages(model: Any) -> Stages:
    """The backbone, its further maps, and what predicts boxes."""
    if not ssd_stem(model):
        return (("backbone",), ("head.regression_head",))
    (stem,) = ssd_stem(model)
    inside = stem.count(".") > 2
    first = group(model, "backbone.features.0", always, without=(stem,)) if inside else ()
    begun = ("backbone.features.0",) if inside else (stem,)
    trunk = (*first, *group(model, "backbone.features", pools, without=begun))
    more = [f"backbone.{name}" for name, _ in model.backbone.named_parameters(recurse=False)]
    return (*trunk, (*more, "backbone.extra"), ("head.regression_head",))


def pyramid_stem(model: Any) -> tuple[str, ...]:
    """What of the backbone reads the images; a backbone of a user's own is one stage."""
    return stem_of(model, "backbone.body") if hasattr(model.backbone, "body") else ()


def ssd_stem(model: Any) -> tuple[str, ...]:
    """The first convolution, or the first block with its norm."""
    if not hasattr(model.backbone, "extra"):
        return ()
    features = model.get_submodule("backbone.features.0")
    inner = [f"backbone.features.0.{name}" for name, _ in features.named_children()]
    return tuple(inner[:1]) or ("backbone.features.0",)


def _pyramid(model: Any) -> Stages:
    if not hasattr(model.backbone, "body"):
        return (("backbone",),)
    trunk = group(model, "backbone.body", coarsens, without=pyramid_stem(model))
    return (*trunk, ("backbone.fpn",))
