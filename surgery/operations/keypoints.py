"""Replace the layer that makes keypoints: another number of them, and nothing else moved."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.families.registry import Registry
from surgery.operations.apply import operate
from surgery.operations.calls import called
from surgery.operations.choose import check_num_classes, choose_keypoints
from surgery.operations.entries import Options
from surgery.operations.keep import Keep
from surgery.operations.plan import Outcome, Plan
from surgery.operations.resize import kept_rows, plan_resizing
from surgery.operations.values import Init, check_generator, check_init, check_trainable
from surgery.survey import survey


def replace_keypoints(
    model: nn.Module,
    num_keypoints: int,
    *,
    keep: Keep = None,
    init: Init = "default",
    generator: torch.Generator | None = None,
    trainable: bool | None = True,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Give a model that makes keypoints another number of them, and prove it.

    Keypoints are no classes: ``replace_head`` leaves their number alone, and this leaves the
    classes alone. Planned, verified and undone like every other operation.

    Args:
        model: a model in which a family claims a layer with the role ``keypoints``.
        num_keypoints: the new number.
        keep: keypoints that stay, ``{new: old}`` by index, or ``"all"``.
        init: ``"default"`` (what the architecture draws), ``"zeros"``, or a callable that fills
            the weight in place.
        generator: source of the random numbers; torch's default one, if left out.
        trainable: ``requires_grad`` of the new parameters; None keeps that of the old ones.
        example: the arguments of one forward pass; left out, the family supplies it.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome: the model, what changed, every check, and ``undo()``.

    Raises:
        ArgumentError: a wrong argument.
        NoHeadError: no layer of the model is known to make keypoints.
        PlanError: something that depends on the old number cannot follow. Nothing was touched.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import surgery, torch
        >>> from torchvision.models.detection import keypointrcnn_resnet50_fpn
        >>> with torch.device("meta"):
        ...     model = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        >>> outcome = surgery.replace_keypoints(model, 5)
        >>> model.roi_heads.keypoint_predictor.kps_score_lowres.out_channels
        5
    """
    number = check_num_classes(
        num_keypoints, "num_keypoints", "surgery.replace_keypoints(model, 5)"
    )
    check_init(init)
    check_generator(generator)
    check_trainable(trainable)
    options = Options(init=init, generator=generator, trainable=trainable)
    tree.check_model(model)
    tree.check_changeable(model)

    def planned() -> Plan:
        known = survey(model, example, registry=registry)
        chosen = choose_keypoints(known.heads, number)
        inner = tree.unwrap(model)
        making = options.known_to(inner, (head for head, _ in chosen), registry)
        rows = kept_rows(inner, known, chosen, keep, None, None, making)
        title = f"replace_keypoints({number})"
        plan = plan_resizing(title, inner, known, chosen, None, making, rows)
        given = {"num_keypoints": number, "keep": keep, "init": init, "trainable": trainable}
        return dataclasses.replace(plan, call=called("replace_keypoints", **given))

    return operate(model, planned, dry_run=dry_run, generator=generator)
