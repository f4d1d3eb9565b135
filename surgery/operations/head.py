"""Replace heads: another number of classes in every class output, and nothing else moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.claims import FOLLOWING
from surgery.families.registry import Registry
from surgery.operations.apply import operate
from surgery.operations.attach import Attach, check_attach, plan_attaching
from surgery.operations.background import check_background
from surgery.operations.calls import called
from surgery.operations.choose import Names, Wanted, check_classes, check_known_layers, choose
from surgery.operations.deeper import check_depth
from surgery.operations.entries import Options
from surgery.operations.keep import Keep, OldNames, unused_names
from surgery.operations.plan import Outcome, Plan
from surgery.operations.resize import kept_rows, plan_resizing, sizes_shown
from surgery.operations.values import Init, check_generator, check_init, check_trainable
from surgery.operations.wrapped import check_wrapped
from surgery.survey import Survey, survey


def replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    classes: Names = None,
    keep: Keep = None,
    old_classes: OldNames = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    heads: Wanted = None,
    init: Init = "default",
    generator: torch.Generator | None = None,
    trainable: bool | None = True,
    attach: Attach = False,
    pool: str | None = None,
    channels: int | None = None,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Give every class output of a model another number of classes, and prove it.

    The head layer stays the same object and gets new parameters; per-class biases, temperatures
    and statistics behind it, attributes such as ``num_classes`` and ``config.id2label``, and
    every address of a shared layer follow. So do the layers that are coupled to the classes, such
    as the box regressor of a detector. Everything is planned first, checked afterwards by
    recording the model again in eval and in train mode, and taken back if anything fails.

    With ``attach``, a model that has no head gets one. It takes the place of the ``nn.Identity``
    that stands for it, where there is one; else ``outcome.model`` is a new module with the model,
    unchanged, as its ``backbone`` and the head behind it as ``head``.

    Args:
        model: any module; it is changed in place. ``torch.compile``'s wrapper is passed through.
        num_classes: the new number of classes; may be left out where ``classes`` or ``heads``
            gives it.
        classes: names of the new classes, written to ``id2label`` and the like.
        keep: classes that stay: ``{new: old}`` by index or name, a list of old ones for their
            mean, or ``"all"`` for those of the same name (or index, where there are no names).
            Their entries carry over bit for bit; all others are drawn.
        old_classes: names of the present classes, where the model does not know them: a list, or
            an entry of pretrained weights whose ``meta["categories"]`` lists them.
        hidden: sizes of hidden layers in front of the last, each with a ReLU.
        dropout: probability of dropout behind every hidden layer, or in front of the one layer
            where there are none, 0 to below 1.
        heads: which heads: an address, several, or ``{address: number}``. Left out: all that are
            corroborated, else the only candidates, with a warning.
        init: ``"default"`` (what the layer's constructor draws), ``"zeros"``, or a callable that
            fills the weight in place, such as ``torch.nn.init.xavier_uniform_``.
        generator: source of the random numbers; torch's default one, if left out.
        trainable: ``requires_grad`` of the new parameters; None keeps that of the old ones.
        attach: put a head on a model that has none: True, or the path of the output that holds
            the features (``"output.last_hidden_state"``), where there are several. ``heads`` then
            names an ``nn.Identity`` to put it in the place of.
        pool: with ``attach``, how features of many places become one vector a sample: ``"mean"``,
            ``"max"``, ``"first"`` (a class token) or ``"last"``, without those that an
            ``attention_mask`` leaves out. Left out: as the model does it, and images by their mean.
        channels: with ``attach``, the axis of the features that holds the channels, where the
            graph does not show it.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome: the model, what changed, every check, and ``undo()``.

    Raises:
        ArgumentError: a wrong argument.
        NoHeadError: nothing in the model makes classes.
        AmbiguousHeadError: several candidates, and nothing that decides.
        PlanError: something that depends on the old number cannot follow. Nothing was touched.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> outcome = surgery.replace_head(model, 3, heads="2")
        >>> model(torch.zeros(1, 8)).shape
        torch.Size([1, 3])
        >>> outcome.undo()(torch.zeros(1, 8)).shape
        torch.Size([1, 5])
    """
    number, names = check_classes(classes, num_classes, heads)
    check_init(init)
    check_generator(generator)
    check_trainable(trainable)
    check_attach(attach, pool, channels, keep=keep, old_classes=old_classes)
    options = Options(*check_depth(hidden, dropout), init, generator, trainable)
    asked = _Asked(number, names, keep, old_classes, heads, options, attach, pool, channels)
    tree.check_model(model)
    tree.check_changeable(model)
    planned = partial(_planned, model, asked, example, registry)
    return operate(model, planned, dry_run=dry_run, generator=generator, registry=registry)


@dataclass(frozen=True)
class _Asked:
    """What a caller asked for."""

    number: int | None
    names: tuple[str, ...] | None
    keep: Keep
    old_classes: OldNames
    heads: Wanted
    options: Options
    attach: Attach
    pool: str | None
    channels: int | None

    def call(self, **arguments: Any) -> Mapping[str, Any]:
        """The call, with the arguments that are its own and those of every head."""
        return called(
            "replace_head",
            **arguments,
            classes=self.names,
            init=self.options.init,
            hidden=self.options.hidden,
            dropout=self.options.dropout,
            trainable=self.options.trainable,
        )


def _planned(model: nn.Module, asked: _Asked, example: Any, registry: Registry | None) -> Plan:
    known = survey(model, example, registry=registry)
    inner, names = tree.unwrap(model), asked.names
    if asked.attach:
        return _attached(inner, asked, known, registry)
    check_known_layers(known)
    chosen = [
        (h, n) for h, n in choose(known.heads, asked.heads, asked.number, "replace_head") if n
    ]
    for head, _ in chosen:
        check_wrapped(model, (a for found in head.weights for a in found), registry)
    remarks = check_background(chosen, names)
    making = asked.options.known_to(inner, (head for head, _ in chosen), registry)
    rows = kept_rows(inner, known, chosen, asked.keep, names, asked.old_classes, making)
    unused = unused_names(asked.keep, asked.old_classes)
    told = () if known.family is None else known.family.notes
    title = f"replace_head({sizes_shown(chosen)})"
    plan = plan_resizing(title, inner, known, chosen, names, making, rows)
    call = asked.call(
        heads={head.address: n for head, n in chosen if head.role not in FOLLOWING},
        keep=asked.keep,
        old_classes=asked.old_classes,
    )
    notes = (*remarks, *told, *unused, *plan.notes)
    return dataclasses.replace(plan, classes=names or (), notes=notes, call=call)


def _attached(model: nn.Module, asked: _Asked, known: Survey, registry: Registry | None) -> Plan:
    plan = plan_attaching(
        model,
        known,
        asked.number,
        asked.names,
        asked.options,
        attach=asked.attach,
        pool=asked.pool,
        channels=asked.channels,
        heads=asked.heads,
        registry=registry,
    )
    call = asked.call(
        num_classes=asked.number,
        heads=asked.heads,
        attach=asked.attach,
        pool=asked.pool,
        channels=asked.channels,
    )
    return dataclasses.replace(plan, call=call)
