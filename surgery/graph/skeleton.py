"""A copy of a model that shares its code and none of its state.

Running the copy cannot touch the model. Every parameter and buffer is replaced by a stand-in: on
the ``meta`` device, or, where values are needed, real. Integers and booleans are small and steer
control flow, so they stay real up to a size.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError

Backend: TypeAlias = Literal["meta", "real"]

# Integer state above this many elements (int8 weights) goes to meta: it steers nothing.
REAL_STATE_LIMIT = 100_000

_ATOMIC = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        torch.dtype,
        torch.device,
        torch.Size,
        torch.memory_format,
        torch.layout,
        types.FunctionType,
        types.BuiltinFunctionType,
        types.ModuleType,
        type,
        range,
        slice,
    }
)

_PLAIN = (nn.Parameter, torch.Tensor)
# Hook tables and the like: nearly always empty, and no two modules share one.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def is_floating(dtype: torch.dtype) -> bool:
    """Whether values of this dtype are what a network computes with (complex included)."""
    return dtype.is_floating_point or dtype.is_complex


@dataclass(eq=False)
class Skeleton:
    """The copy, and what each of its tensors and modules stands for.

    Attributes:
        model: the copy of the unwrapped model.
        sources: by ``id`` of a stand-in, and of the original: the original's index entry.
        stand_ins: by ``id`` of an original tensor, its stand-in.
        modules: every copied module with its first address.
        shared: what could not be copied and is shared with the model, in words.
    """

    model: nn.Module
    sources: dict[int, tree.Entry]
    stand_ins: dict[int, torch.Tensor]
    modules: tuple[tuple[nn.Module, str], ...]
    shared: tuple[str, ...]

    def renew_stand_ins(self) -> None:
        """After the copy was edited: a closure over the model must meet the new tensors too."""
        for key in self.stand_ins:
            entry = self.sources[key]
            try:
                found = tree.get(self.model, entry.address)
            except AddressError:
                continue
            if isinstance(found, torch.Tensor):
                self.stand_ins[key] = found


def build_skeleton(model: nn.Module, backend: Backend = "meta") -> Skeleton:
    """Copy a model's structure around stand-ins for its tensors.

    Args:
        model: any module; wrappers are passed through.
        backend: ``meta`` for stand-ins without values; ``real`` for parameters that share
            their values with the model and buffers that are copies.

    Returns:
        The skeleton. Train flags, hooks and attributes are those of the model.
    """
    return _Copier(tree.index(model), backend).run()


class _Copier:
    """``copy.deepcopy`` for modules: quicker, and lenient with what cannot be copied."""

    def __init__(self, index: tree.Index, backend: Backend) -> None:
        self.index = index
        self.backend = backend
        self.memo: dict[int, Any] = {}
        self.keep: list[Any] = []
        self.shared: list[str] = []

    def run(self) -> Skeleton:
        sources: dict[int, tree.Entry] = {}
        stand_ins: dict[int, torch.Tensor] = {}
        for key, entry in self.index.tensors.items():
            stand_in = self.stand_in(entry.tensor, entry.kind)
            self.memo[key] = stand_in
            stand_ins[key] = stand_in
            sources[key] = entry
            sources[id(stand_in)] = entry
        # Shells first, so that whatever refers to a module finds its copy, in any order.
        for key, (module, _) in self.index.modules.items():
            self.memo[key] = object.__new__(type(module))
        for key, (module, _) in self.index.modules.items():
            self.fill(module, self.memo[key])
        modules = tuple(
            (self.memo[key], found[0]) for key, (_, found) in self.index.modules.items()
        )
        root = self.memo[id(self.index.root)]
        return Skeleton(root, sources, stand_ins, modules, tuple(self.shared))

    def fill(self, module: nn.Module, shell: nn.Module) -> None:
        state = shell.__dict__
        copied = self.copied
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _ATOMIC:
                state[name] = value
            elif name in _OF_EVERY_MODULE and not value:
                state[name] = kind()
            else:
                state[name] = copied(value)
        cls: type = type(module)
        for slot in _slots(cls):
            if hasattr(module, slot):
                object.__setattr__(shell, slot, copied(getattr(module, slot)))
        state.pop("_compiled_call_impl", None)

    def copied(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMIC or isinstance(value, type):
            return value
        if isinstance(value, nn.Module):
            value = tree.unwrap(value)
        known = self.memo.get(id(value), self)
        if known is not self:
            return known
        handler = _HANDLERS.get(kind)
        if handler is not None:
            return handler(self, value)
        if isinstance(value, nn.Module):
            shell = object.__new__(kind)
            self.remember(value, shell)
            self.fill(value, shell)
            return shell
        if isinstance(value, torch.Tensor):
            # A parameter of a module that hangs in a list is one that the model does not know of.
            is_parameter = isinstance(value, nn.Parameter)
            stand_in = self.stand_in(value, "parameter" if is_parameter else "attribute")
            return self.remember(value, stand_in)
        return self.foreign(value)

    def remember(self, value: Any, result: Any) -> Any:
        self.memo[id(value)] = result
        self.keep.append(value)
        return result

    def foreign(self, value: Any) -> Any:
        """Copy an object of unknown class, or share it where it refuses."""
        trial = dict(self.memo)
        try:
            result = copy.deepcopy(value, trial)
        except Exception as error:
            self.shared.append(
                f"a {tree.class_name(type(value))} cannot be copied ({type(error).__name__}) "
                "and was shared with the recording"
            )
            return self.remember(value, value)
        self.memo = trial
        return result

    def stand_in(self, tensor: torch.Tensor, kind: tree.TensorKind) -> torch.Tensor:
        if self.backend == "real":
            return _real_stand_in(tensor, kind)
        steers = not is_floating(tensor.dtype) or (kind == "attribute" and not tensor.is_meta)
        if steers and not tensor.is_meta and tensor.numel() <= REAL_STATE_LIMIT:
            stand_in = tensor.detach().to("cpu", copy=True)
        elif type(tensor) in _PLAIN and tensor.layout == torch.strided:
            # Ten times quicker on meta than empty_like, which is written in Python there.
            stand_in = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
            )
        else:
            stand_in = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return _like(tensor, stand_in)


def _real_stand_in(tensor: torch.Tensor, kind: tree.TensorKind) -> torch.Tensor:
    if kind == "parameter":
        return _like(tensor, tensor.detach().data)
    return _like(tensor, tensor.detach().clone())


def _like(tensor: torch.Tensor, stand_in: torch.Tensor) -> torch.Tensor:
    """Give a stand-in what code asks of a tensor besides its values."""
    if isinstance(tensor, nn.Parameter):
        stand_in = nn.Parameter(stand_in, requires_grad=tensor.requires_grad)
    if tensor.__dict__:
        stand_in.__dict__.update(tensor.__dict__)
    return stand_in


@functools.cache
def _slots(cls: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _copy_dict(copier: _Copier, value: dict[Any, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = copier.remember(value, type(value)())
    for key, item in value.items():
        result[copier.copied(key)] = copier.copied(item)
    return result


def _copy_list(copier: _Copier, value: list[Any]) -> list[Any]:
    result: list[Any] = copier.remember(value, [])
    result.extend(copier.copied(item) for item in value)
    return result


def _copy_tuple(copier: _Copier, value: tuple[Any, ...]) -> tuple[Any, ...]:
    items = tuple(copier.copied(item) for item in value)
    unchanged = all(new is old for new, old in zip(items, value, strict=True))
    return value if unchanged else copier.remember(value, items)


def _copy_set(copier: _Copier, value: set[Any]) -> set[Any]:
    return copier.remember(value, {copier.copied(item) for item in value})  # type: ignore[no-any-return]


def _copy_method(copier: _Copier, value: types.MethodType) -> types.MethodType:
    return types.MethodType(value.__func__, copier.copied(value.__self__))


def _copy_partial(copier: _Copier, value: functools.partial[Any]) -> functools.partial[Any]:
    return functools.partial(
        copier.copied(value.func),
        *(copier.copied(item) for item in value.args),
        **{key: copier.copied(item) for key, item in value.keywords.items()},
    )


def _copy_generator(copier: _Copier, value: torch.Generator) -> torch.Generator:
    return copier.remember(value, value.clone_state())  # type: ignore[no-any-return]


_HANDLERS: dict[type, Callable[[_Copier, Any], Any]] = {
    dict: _copy_dict,
    OrderedDict: _copy_dict,
    list: _copy_list,
    tuple: _copy_tuple,
    set: _copy_set,
    types.MethodType: _copy_method,
    functools.partial: _copy_partial,
    torch.Generator: _copy_generator,
}
