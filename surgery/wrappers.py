"""Wrappers: modules that only carry another model, hold on to it, or have it frozen in.

All are told by their class, so that nothing is imported to recognise one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Wrapper:
    """How a module carries another.

    Attributes:
        attribute: the name under which it keeps the other.
        refusal: why a change inside is refused; empty where changes hold.
    """

    attribute: str
    refusal: str = ""

    @property
    def changeable(self) -> bool:
        """Whether the carried model can be changed where it is."""
        return not self.refusal


_SHARDS = "it works on shards of the parameters it was given, and a new layer would have none"
_AVERAGES = (
    "it averages the gradients of the parameters it was given and of no other: a new layer would "
    "drift apart between the processes, or fail at the second step"
)
_EXPORTED = (
    "an exported program has its shapes written into its code",
    "operate on the module it was exported from, then export again",
)

WRAPPERS: Mapping[str, Wrapper] = {
    "torch._dynamo.eval_frame.OptimizedModule": Wrapper("_orig_mod"),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": Wrapper(
        "_checkpoint_wrapped_module"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": Wrapper(
        "module", "its devices are laid out for the model it was given"
    ),
    "torch.nn.parallel.distributed.DistributedDataParallel": Wrapper("module", _AVERAGES),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": Wrapper(
        "_fsdp_wrapped_module", _SHARDS
    ),
}

# Mixed into the model's own class, so that there is nothing to unwrap: by what mixed it in, and
# why a change is refused. The name of the first is not the same in every version of torch.
MIXINS: Mapping[str, tuple[str, str]] = {
    "torch.distributed.fsdp.FSDPModule": ("fully_shard", _SHARDS),
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule": ("fully_shard", _SHARDS),
    "torch.distributed._composable.replicate.DDP": ("replicate", _AVERAGES),
}

# Classes that hold a model in which nothing can be recorded or changed: what is wrong, what to do.
FROZEN: Mapping[str, tuple[str, str]] = {
    "torch.jit._script.ScriptModule": (
        "a scripted or traced module has no Python forward to record or change",
        "operate on the module it was made from, then call torch.jit.script again",
    ),
    "torch.export._unlift._StatefulGraphModule": _EXPORTED,
    "torch.export.unflatten.UnflattenedModule": _EXPORTED,
}


def class_name(cls: type) -> str:
    """The qualified name of a class.

    Args:
        cls: any class.

    Returns:
        ``package.module.Class``.

    Example:
        >>> import torch
        >>> class_name(torch.nn.Linear)
        'torch.nn.modules.linear.Linear'
    """
    return f"{cls.__module__}.{cls.__qualname__}"


def _among_bases(cls: type, table: Mapping[str, Any]) -> Any:
    names = (class_name(base) for base in cls.__mro__)
    return next((table[name] for name in names if name in table), None)


# Bounded, since every parametrized or sharded module makes a class of its own.
_cached = lru_cache(maxsize=4096)
_wrapper_class: Callable[[type], Wrapper | None] = _cached(lambda cls: _among_bases(cls, WRAPPERS))
_frozen_class: Callable[[type], tuple[str, str] | None] = _cached(
    lambda cls: _among_bases(cls, FROZEN)
)


def wrapper_of(module: nn.Module) -> Wrapper | None:
    """How a module wraps another.

    Args:
        module: any module.

    Returns:
        Where it keeps the other and whether changes inside hold; None for a model of its own,
        also for one that has a submodule called ``module``.

    Example:
        >>> import torch
        >>> wrapper_of(torch.nn.DataParallel(torch.nn.Linear(2, 2))).attribute
        'module'
    """
    return _wrapper_class(type(module))


def mixin_of(module: nn.Module) -> tuple[str, str] | None:
    """What was mixed into the class of a module that forbids changes inside.

    Args:
        module: any module.

    Returns:
        The function that mixed it in (``fully_shard``) and why changes are refused, or None.

    Example:
        >>> import torch
        >>> mixin_of(torch.nn.Linear(2, 2)) is None
        True
    """
    found: tuple[str, str] | None = _among_bases(type(module), MIXINS)
    return found


def frozen_in(module: nn.Module) -> tuple[str, str] | None:
    """Why nothing in a module can be recorded or changed.

    Args:
        module: any module.

    Returns:
        What is wrong and what to do instead; None for an eager module.

    Example:
        >>> import torch
        >>> frozen_in(torch.nn.Linear(2, 2)) is None
        True
    """
    return _frozen_class(type(module))


def carried(module: nn.Module, wrapper: Wrapper) -> nn.Module:
    """The module inside one wrapper.

    Args:
        module: the wrapper.
        wrapper: how it wraps, from ``wrapper_of``.

    Returns:
        What it carries, which may be a wrapper again.

    Example:
        >>> import torch
        >>> data_parallel = torch.nn.DataParallel(torch.nn.ReLU())
        >>> carried(data_parallel, wrapper_of(data_parallel))
        ReLU()
    """
    inner: Any = module._modules[wrapper.attribute]
    found: nn.Module = inner
    return found


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside any number of wrappers.

    Args:
        module: a module inside ``torch.compile``, DataParallel, DistributedDataParallel, FSDP or
            an activation checkpoint, or inside none.

    Returns:
        The innermost one, the object itself.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 2)
        >>> unwrap(torch.nn.DataParallel(net)) is net
        True
    """
    while (wrapper := _wrapper_class(type(module))) is not None:
        module = carried(module, wrapper)
    return module
