"""The first values of new tensors: what a layer's constructor would draw, or what was asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from surgery.errors import ArgumentError, PlanError
from surgery.graph.skeleton import is_floating

Init: TypeAlias = Literal["default", "zeros"] | Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Start:
    """How the first values of a head are made.

    Attributes:
        init: of the weight; what the caller asked for, or what the architecture does.
        bias: the value of its bias, where that is a constant.
    """

    init: Init = "default"
    bias: float | None = None


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


def check_generator(generator: object) -> None:
    """Refuse what is no source of random numbers.

    Raises:
        ArgumentError: neither None nor a ``torch.Generator``.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    raise ArgumentError(
        "this is no source of random numbers",
        where="generator",
        expected="a torch.Generator, or None for torch's own",
        found=repr(generator),
        fix="generator=torch.Generator().manual_seed(0)",
    )


def check_trainable(trainable: object) -> None:
    """Refuse what is no flag.

    Raises:
        ArgumentError: neither True, False nor None.
    """
    if trainable is None or isinstance(trainable, bool):
        return
    raise ArgumentError(
        "new parameters are trainable, or not, or as the old ones were",
        where="trainable",
        expected="True, False or None",
        found=repr(trainable),
        fix="surgery.replace_head(model, 7, trainable=None)",
    )


def check_same_device(generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a generator that cannot draw where the head lies.

    Raises:
        ArgumentError: the generator belongs to another device.
    """
    if generator is None or device.type in ("meta", generator.device.type):
        return
    raise ArgumentError(
        "a generator draws on its own device only",
        where="generator",
        expected=f"a generator on {device.type}, where the head is",
        found=f"a generator on {generator.device.type}",
        fix=f"generator=torch.Generator({device.type!r}).manual_seed(0)",
    )


def resized(tensor: torch.Tensor, axis: int, size: int, address: str = "") -> torch.Tensor:
    """An uninitialised tensor with another size along one axis, placed as the old one.

    Raises:
        PlanError: there is no memory for it.
    """
    shape = list(tensor.shape)
    shape[axis] = size
    try:
        new = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    except (RuntimeError, MemoryError) as error:
        raise no_memory(shape, tensor.dtype, tensor.device, address, error) from error
    last = torch.channels_last
    if (
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=last)
        and not tensor.is_contiguous()
    ):
        return new.contiguous(memory_format=last)
    return new


def no_memory(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, address: str, error: Exception
) -> PlanError:
    """The error for a tensor that does not fit into memory."""
    return PlanError(
        f"there is no memory for a tensor of {' by '.join(map(str, shape))}",
        where=address or None,
        expected=f"{math.prod(shape) * dtype.itemsize:,} bytes on {device}",
        found=str(error).splitlines()[0],
        fix="surgery.replace_head(model, 7)",
    )


def fill_weight(
    tensor: torch.Tensor, axis: int, kind: str, start: Start, generator: torch.Generator | None
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
        if start.init == "zeros":
            tensor.zero_()
        elif callable(start.init):
            _call(start.init, tensor)
        elif like_torch:
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
        else:
            _uniform(tensor, 1 / math.sqrt(fan_in), generator)
    return fan_in


def fill_bias(
    tensor: torch.Tensor, fan_in: int, start: Start, generator: torch.Generator | None
) -> None:
    """Fill a bias in place: zeros where the weight is, else as the layers of torch do."""
    with torch.no_grad():
        if start.init == "zeros":
            tensor.zero_()
        elif start.bias is not None:
            tensor.fill_(start.bias)
        else:
            _uniform(tensor, 1 / math.sqrt(max(fan_in, 1)), generator)


def _uniform(tensor: torch.Tensor, bound: float, generator: torch.Generator | None) -> None:
    if tensor.is_meta:
        return
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    real.uniform_(-bound, bound, generator=generator)


def _call(init: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> None:
    shape = tuple(tensor.shape)
    # A value that no initialiser writes shows what it left out.
    tensor.fill_(math.nan)
    try:
        init(tensor)
    except Exception as error:
        raise _bad_init(f"init raised {type(error).__name__}: {error}", shape) from error
    if tuple(tensor.shape) != shape:
        raise _bad_init(f"init gave the tensor another shape, {tuple(tensor.shape)}", shape)
    unset = 0 if tensor.is_meta else int(torch.isnan(tensor).sum())
    if unset:
        raise _bad_init(f"init left {unset} of {tensor.numel()} values unset", shape)


def _bad_init(what: str, shape: tuple[int, ...]) -> ArgumentError:
    return ArgumentError(
        what,
        where="init",
        expected="a callable that fills a tensor in place",
        found=f"a tensor of shape {shape} was handed to it",
        fix="init=torch.nn.init.xavier_uniform_",
    )


def fill_vector(tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    """A random vector of length one, as power iteration starts from."""
    if not tensor.is_meta:
        with torch.no_grad():
            tensor.normal_(generator=generator)
            tensor.div_(tensor.norm().clamp_min(1e-12))


def carry_on(old: torch.Tensor, new: torch.Tensor, axis: int, address: str) -> str:
    """Fill a per-class tensor behind the head from what the old one held.

    Returns:
        What new classes got that no old class had, in words; empty where nothing was made up.

    Raises:
        PlanError: it holds a whole number or a flag of its own for every class, which nobody can
            continue.
    """
    if old.is_meta or not old.numel():
        return ""
    with torch.no_grad():
        flat = old.detach()
        first = flat.narrow(axis, 0, 1)
        if bool(((flat == first) | (flat.isnan() & first.isnan())).all()):
            new.copy_(first.expand_as(new))
            return ""
        if is_floating(flat.dtype):
            new.copy_(flat.mean(axis, keepdim=True).expand_as(new))
            return "the mean over the old classes"
        if flat.dim() == 1 and flat.tolist() == list(range(len(flat))):
            new.copy_(torch.arange(len(new), dtype=new.dtype, device=new.device))
            return ""
    raise PlanError(
        "this holds a value of its own for every class, and nothing says what new classes have",
        where=address,
        expected="one value for all classes, or floating-point values to average",
        found=f"{str(old.dtype).removeprefix('torch.')}{list(old.shape)} with different values",
        fix=f"make it one value first: model.{address}.fill_({flat.flatten()[0].item()!r})",
    )


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds one value throughout."""
    if tensor.is_meta or not tensor.numel():
        return False
    return bool((tensor == tensor.flatten()[0]).all())


def is_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds zeros and ones only."""
    return not tensor.is_meta and bool(((tensor == 0) | (tensor == 1)).all())


def _is_plain_subclass(kind: type[nn.Parameter]) -> bool:
    """Whether a class of parameters is one in name only, without behaviour of its own."""
    return kind is not nn.Parameter and not any(
        getattr(kind, name) is not getattr(nn.Parameter, name)
        for name in ("__torch_dispatch__", "__torch_function__", "__new__")
    )


def parameter_like(old: torch.Tensor, new: torch.Tensor, trainable: bool | None) -> torch.Tensor:
    """Wrap a new tensor as what the old one was; ``trainable`` None keeps the old flag."""
    if not isinstance(old, nn.Parameter):
        return new
    floating = new.dtype.is_floating_point or new.dtype.is_complex
    asked = old.requires_grad if trainable is None else trainable
    parameter = nn.Parameter(new, requires_grad=asked and floating)
    if _is_plain_subclass(type(old)):
        parameter = torch.Tensor._make_subclass(type(old), new, asked and floating)
    parameter.__dict__.update(old.__dict__)
    return parameter
