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
from surgery.operations.choose import Names, check_keypoints, choose_keypoints
from surgery.operations.counted import KEYPOINTS
from surgery.operations.entries import Options
from surgery.operations.keep import Keep, OldNames, unused_names
from surgery.operations.names import remembered
from surgery.operations.plan import Outcome, Plan
from surgery.operations.resize import kept_rows, plan_resizing
from surgery.operations.values import Init, check_generator, check_init, check_trainable
from surgery.survey import survey


def replace_keypoints(
    model: nn.Module,
    num_keypoints: int | None = None,
    *,
    keypoints: Names = None,
    keep: Keep = None,
    old_keypoints: OldNames = None,
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
        num_keypoints: the new number; may be left out where ``keypoints`` gives it.
        keypoints: names of the new keypoints, for ``keep``; nothing stores them.
        keep: keypoints that stay: ``{new: old}`` by index or name, a list of old ones for their
            mean, or ``"all"`` for those of the same name (or index, where there are no names).
        old_keypoints: names of the present keypoints: a list, or an entry of pretrained weights
            whose ``meta["keypoint_names"]`` lists them.
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
    number, names = check_keypoints(keypoints, num_keypoints)
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
        rows = kept_rows(inner, known, chosen, keep, names, old_keypoints, making, KEYPOINTS)
        title = f"replace_keypoints({number})"
        plan = plan_resizing(title, inner, known, chosen, None, making, rows)
        call = called(
            "replace_keypoints",
            num_keypoints=number,
            keypoints=names,
            keep=keep,
            old_keypoints=old_keypoints,
            init=init,
            trainable=trainable,
        )
        notes = (*unused_names(keep, old_keypoints, KEYPOINTS), *plan.notes)
        # The names of the classes stay, also where as many keypoints had entries of their own.
        return dataclasses.replace(plan, classes=remembered(inner), notes=notes, call=call)

    return operate(model, planned, dry_run=dry_run, generator=generator, registry=registry)
