"""The first values of new tensors: what a layer's constructor would draw, or what was asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import nn

from surgery.errors import ArgumentError, PlanError

Init: TypeAlias = Literal["default", "zeros"] | Callable[[torch.Tensor], object]


def check_init(init: object) -> None:
    """Refuse what is no way to initialise a layer.

    Raises:
        ArgumentError: neither ``"default"``, ``"zeros"`` nor a callable.
    """
    if init in ("default", "zeros") or (callable(init) and not isinstance(init, type)):
        return
    raise ArgumentError(
        "this is no way to initialise a head",
        where="init",
        expected="'default', 'zeros', or a callable that fills a tensor in place",
        found=repr(init),
        fix="init=torch.nn.init.xavier_uniform_",
    )


def resized(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """An uninitialised tensor with another size along one axis, placed as the old one."""
    shape = list(tensor.shape)
    shape[axis] = size
    new = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    last = torch.channels_last
    if (
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=last)
        and not tensor.is_contiguous()
    ):
        return new.contiguous(memory_format=last)
    return new


def fill_weight(
    tensor: torch.Tensor, axis: int, kind: str, init: Init, generator: torch.Generator | None
) -> int:
    """Fill a weight with one row a class along ``axis``, in place.

    By default it draws what the layer's own constructor would: uniform within one over the square
    root of the fan-in (Kaiming He et al., https://arxiv.org/abs/1502.01852, with a = sqrt(5)).

    Returns:
        The fan-in, which bounds the bias.
    """
    rows = max(tensor.shape[axis], 1)
    fan_in = max(tensor.numel() // rows, 1)
    like_torch = kind.startswith(("linear", "conv")) and tensor.dim() > 1
    if like_torch:
        fan_in = max(tensor[0].numel(), 1)
    elif kind == "bilinear":
        fan_in = tensor.shape[1]
    with torch.no_grad():
        if init == "zeros":
            tensor.zero_()
        elif callable(init):
            _call(init, tensor)
        elif like_torch and not tensor.is_complex():
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
        else:
            _uniform(tensor, 1 / math.sqrt(fan_in), generator)
    return fan_in


def fill_bias(
    tensor: torch.Tensor, fan_in: int, init: Init, generator: torch.Generator | None
) -> None:
    """Fill a bias in place: zeros where the weight is, else as the layers of torch do."""
    with torch.no_grad():
        if init == "zeros":
            tensor.zero_()
        else:
            _uniform(tensor, 1 / math.sqrt(max(fan_in, 1)), generator)


def _uniform(tensor: torch.Tensor, bound: float, generator: torch.Generator | None) -> None:
    if tensor.is_meta:
        return
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    real.uniform_(-bound, bound, generator=generator)


def _call(init: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> None:
    try:
        init(tensor)
    except Exception as error:
        raise ArgumentError(
            f"init raised {type(error).__name__}: {error}",
            where="init",
            expected="a callable that fills a tensor in place",
            found=f"a tensor of shape {tuple(tensor.shape)} was handed to it",
            fix="init=torch.nn.init.xavier_uniform_",
        ) from error


def fill_vector(tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    """A random vector of length one, as power iteration starts from."""
    if not tensor.is_meta:
        with torch.no_grad():
            tensor.normal_(generator=generator)
            tensor.div_(tensor.norm().clamp_min(1e-12))


def carry_on(old: torch.Tensor, new: torch.Tensor, axis: int, address: str) -> str:
    """Fill a per-class tensor behind the head from what the old one held; says how.

    Raises:
        PlanError: it holds a different whole number for every class, which nobody can continue.
    """
    if old.is_meta:
        return "no values on meta"
    with torch.no_grad():
        flat = old.detach()
        first = flat.narrow(axis, 0, 1)
        if bool((flat == first).all()):
            new.copy_(first.expand_as(new))
            return "the value that all classes had"
        if flat.dtype.is_floating_point or flat.dtype.is_complex:
            new.copy_(flat.mean(axis, keepdim=True).expand_as(new))
            return "the mean over the old classes"
        if flat.dim() == 1 and torch.equal(flat, torch.arange(len(flat), dtype=flat.dtype)):
            new.copy_(torch.arange(len(new), dtype=new.dtype))
            return "counted on"
    raise PlanError(
        "this holds a number of its own for every class, and nothing says what new classes have",
        where=address,
        expected="one value for all classes, or floating-point values to average",
        found=f"{old.dtype} {tuple(old.shape)}",
        fix=f"set it yourself first, or remove it: model.{address}",
    )


def is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds zeros and ones only."""
    return not tensor.is_meta and bool(((tensor == 0) | (tensor == 1)).all())


def parameter_like(old: torch.Tensor, new: torch.Tensor, trainable: bool | None) -> torch.Tensor:
    """Wrap a new tensor as what the old one was; ``trainable`` None keeps the old flag."""
    if not isinstance(old, nn.Parameter):
        return new
    floating = new.dtype.is_floating_point or new.dtype.is_complex
    asked = old.requires_grad if trainable is None else trainable
    parameter = nn.Parameter(new, requires_grad=asked and floating)
    parameter.__dict__.update(old.__dict__)
    return parameter
