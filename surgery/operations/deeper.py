"""Heads of several layers: hidden layers and dropout in front of the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.heads import Head
from surgery.operations.carry import check_carry
from surgery.operations.plan import Step
from surgery.operations.values import Start, check_same_device, fill_bias, fill_weight, no_memory

if TYPE_CHECKING:
    from surgery.operations.entries import Options

_CONVOLUTIONS: dict[str, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


def check_depth(hidden: object, dropout: object) -> tuple[tuple[int, ...], float]:
    """The sizes of hidden layers, and a probability.

    Raises:
        ArgumentError: sizes that are no whole numbers above zero, or a dropout outside [0, 1).
    """
    if isinstance(hidden, int) and not isinstance(hidden, bool):
        hidden = (hidden,)
    sizes = (
        tuple(hidden) if isinstance(hidden, Sequence) and not isinstance(hidden, str) else (None,)
    )
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ArgumentError(
            "hidden layers are given by their sizes",
            where="hidden",
            expected="whole numbers of at least 1, as in (4096, 2048)",
            found=repr(hidden),
            fix="surgery.replace_head(model, 7, hidden=(512,))",
        )
    number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if not number or not 0 <= float(dropout) < 1:  # type: ignore[arg-type]
        raise ArgumentError(
            "dropout is the probability to drop a feature",
            where="dropout",
            expected="a number from 0 to below 1",
            found=repr(dropout),
            fix="surgery.replace_head(model, 7, hidden=(512,), dropout=0.5)",
        )
    return tuple(size for size in sizes if size), float(dropout)  # type: ignore[arg-type]


def deeper_steps(
    model: nn.Module, head: Head, size: int, options: Options, *, real: bool
) -> tuple[list[Step], list[str]]:
    """The step that puts a deeper head where the old layer was, at all its addresses.

    Returns:
        The step, and remarks on what the old layer did that the new ones do not.

    Raises:
        PlanError: the head is no linear or convolutional layer, or there is no memory.
    """
    plain = head.kind == "linear" or head.kind in _CONVOLUTIONS
    old = tree.get(model, head.address)
    if not plain or not isinstance(old, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise PlanError(
            f"a head of kind {head.kind!r} cannot be given hidden layers or dropout",
            where=head.address or "(the model itself)",
            expected="a Linear or Conv layer",
            found=type(old).__name__,
            fix="leave hidden and dropout out, or build it: "
            f"surgery.replace(model, {{{head.address!r}: module}})",
        )
    new = layers_like(old, head, size, options, real=real)
    check_carry(old, new, head.address)
    kind = "root" if head.address == "" else "module"
    before = f"{type(old).__name__} ({head.in_features} -> {head.num_classes})"
    widths = " -> ".join(map(str, (head.in_features, *options.hidden, size * head.factor)))
    step = Step(kind, head.addresses, before, f"Sequential ({widths})", new)  # type: ignore[arg-type]
    return [step], list(_lost(old, head.address))


def _lost(old: nn.Module, address: str) -> Iterator[str]:
    plain = next(cls for cls in (nn.Linear, *_CONVOLUTIONS.values()) if isinstance(old, cls))
    kind = type(old).__name__
    if parametrize.is_parametrized(old) or set(dict(old.named_parameters())) - {"weight", "bias"}:
        yield f"the new layers at {address!r} are plain: their weights are not computed from others"
    elif type(old).forward is not plain.forward:
        yield f"the new layers at {address!r} are plain: {kind} has a forward of its own"


def layers_like(
    old: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
    head: Head,
    size: int,
    options: Options,
    *,
    real: bool,
    device: torch.device | None = None,
) -> nn.Sequential:
    """The layers of a head, the last of them for the classes, with their first values.

    Args:
        old: what the first of them looks like, of the same dtype.
        head: the head that they are, or take the place of.
        size: how many classes.
        options: hidden layers, dropout, and how values are made.
        real: make values; else layers on meta, to try the shapes out.
        device: where; that of the old layer, if left out.

    Raises:
        PlanError: there is no memory.
        ArgumentError: ``init`` or ``generator`` does not fit.
    """
    weight = next(iter(old.parameters()))
    place: dict[str, Any] = {
        "device": (device or weight.device) if real else torch.device("meta"),
        "dtype": weight.dtype,
    }
    layers: list[nn.Module] = []
    width = head.in_features
    widths = (*options.hidden, size * head.factor)
    for position, following in enumerate(widths):
        last = position == len(widths) - 1
        # In front of a hidden layer the model has its own dropout, or wants none.
        if options.dropout and (position > 0 or last):
            layers.append(nn.Dropout(options.dropout))
        bias = old.bias is not None or not last
        layer = _layer(old, width, following, bias, position == 0, place)
        layer = _placed(layer, place["device"], head.address)
        if real:
            start = options.start(head) if last else Start()
            check_same_device(options.generator, layer.weight.device)
            fan_in = fill_weight(layer.weight, 0, head.kind, start, options.generator)
            if layer.bias is not None:
                fill_bias(layer.bias, fan_in, start, options.generator)
        layers.append(layer)
        if not last:
            layers.append(nn.ReLU())
        width = following
    built = nn.Sequential(*layers)
    flag = weight.requires_grad if options.trainable is None else options.trainable
    return built.requires_grad_(flag)


def _layer(
    old: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
    width: int,
    following: int,
    bias: bool,
    first: bool,
    place: dict[str, Any],
) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
    kind: type[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d] = nn.Linear
    form: dict[str, Any] = {}
    if not isinstance(old, nn.Linear):
        kind = next(cls for cls in _CONVOLUTIONS.values() if isinstance(old, cls))
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        # The first layer looks at the same neighbourhood as the old head did.
        form = {name: getattr(old, name) for name in names} if first else {"kernel_size": 1}
    # Made without values, which are drawn in one place from one generator.
    return kind(width, following, bias=bias, **form, **{**place, "device": "meta"})


def _placed(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, device: torch.device, address: str
) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
    try:
        return layer.to_empty(device=device)
    except (RuntimeError, MemoryError) as error:
        weight = layer.weight
        raise no_memory(weight.shape, weight.dtype, device, address, error) from error
