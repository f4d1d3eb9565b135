"""A copy of a model that shares its code and none of its state.

Running the copy cannot touch the model. Every parameter and buffer is replaced by a stand-in: on
the ``meta`` device, or, where values are needed, real. Integers and booleans are small and steer
control flow, so they stay real up to a size.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


_QUANTISED = frozenset({torch.quint8, torch.qint8, torch.qint32})


def holds_features(dtype: torch.dtype) -> bool:
    """Whether values of this dtype may be features: what ``is_floating`` allows, or quantised."""
    return is_floating(dtype) or dtype in _QUANTISED


@dataclass(eq=False)
class Skeleton:
    """The copy, and what each of its tensors and modules stands for.

    Attributes:
        model: the copy of the unwrapped model.
        sources: by ``id`` of a stand-in, and of the original: the original's index entry.
        stand_ins: by ``id`` of an original tensor, its stand-in.
        modules: every copied module with its first address.
        shared: what could not be copied and is shared with the model, in words.
        originals: the modules of the model itself.
        backend: where the stand-ins are.
    """

    model: nn.Module
    sources: dict[int, tree.Entry]
    stand_ins: dict[int, torch.Tensor]
    modules: tuple[tuple[nn.Module, str], ...]
    shared: tuple[str, ...]
    originals: tuple[nn.Module, ...]
    backend: Backend

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
        originals = tuple(module for module, _ in self.index.modules.values())
        shared = tuple(self.shared)
        return Skeleton(root, sources, stand_ins, modules, shared, originals, self.backend)

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

    @functools.cached_property
    def held(self) -> frozenset[int]:
        """Ids of what the model's modules hold, looked through only where a closure may ask."""
        found: set[int] = set()
        for module, _ in self.index.modules.values():
            _collect(module.__dict__, found)
        return frozenset(found)

    def reaches(self, value: Any, seen: set[int] | None = None) -> bool:
        """Whether a value that a function holds leads to the model's modules or their state."""
        kind = type(value)
        if kind in _ATOMIC or isinstance(value, type):
            return False
        key = id(value)
        if isinstance(value, nn.Module) or key in self.memo or key in self.held:
            return True
        inside = _INSIDE.get(kind)
        seen = set() if seen is None else seen
        if inside is None or key in seen:
            return False
        seen.add(key)
        return any(self.reaches(item, seen) for item in inside(value))

    def taken(self, value: Any) -> Any:
        """What a copied function holds: copies of the model's state, all else as it is."""
        return self.copied(value) if self.reaches(value) else value

    def remember(self, value: Any, result: Any) -> Any:
        self.memo[id(value)] = result
        self.keep.append(value)
        return result

    def foreign(self, value: Any) -> Any:
        """Copy an object of unknown class, or share it where it refuses."""
        trial = dict(self.memo)
        try:
            with _Light() if self.backend == "meta" else contextlib.nullcontext():
                result = copy.deepcopy(value, trial)
        except Exception as error:
            self.shared.append(
                f"a {tree.class_name(type(value))} cannot be copied ({type(error).__name__}) "
                "and was shared with the recording"
            )
            return self.remember(value, value)
        # deepcopy notes what it keeps alive under the id of the memo, which a later temporary may
        # have once this memo is gone.
        self.keep.append(trial.pop(id(trial), None))
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


class _Light(TorchFunctionMode):
    """Copies of large tensors without their values: what holds them may hold whole models."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        large = args and isinstance(args[0], torch.Tensor) and args[0].numel() > REAL_STATE_LIMIT
        # A parameter's copy is a clone of its data.
        if func is torch.Tensor.__deepcopy__ and large and type(args[0]) is torch.Tensor:
            return args[1].setdefault(id(args[0]), _light(args[0]))
        if func is torch.Tensor.clone and large:
            return _light(args[0])
        return func(*args, **(kwargs or {}))


def _light(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


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
    return types.MethodType(copier.copied(value.__func__), copier.copied(value.__self__))


def _copy_bound(copier: _Copier, value: Any) -> Any:
    """A method of a built-in type, such as ``model.seen.append``."""
    owner = value.__self__
    if type(owner) not in _CONTAINERS or not copier.reaches(owner):
        return value
    return getattr(copier.copied(owner), value.__name__)


def _copy_function(copier: _Copier, value: types.FunctionType) -> types.FunctionType:
    """A function that holds a part of the model, over the copy; any other as it is."""
    if not (value.__closure__ or value.__defaults__ or value.__kwdefaults__ or value.__dict__):
        return value
    if not any(copier.reaches(item) for item in _inside_function(value)):
        return value
    cells = value.__closure__ or ()
    twins = []
    for cell in cells:
        twin = copier.memo.get(id(cell))
        twins.append(copier.remember(cell, types.CellType()) if twin is None else twin)
    result = types.FunctionType(
        value.__code__, value.__globals__, value.__name__, None, tuple(twins) or None
    )
    functools.update_wrapper(result, value, updated=())
    del result.__dict__["__wrapped__"]
    # Before what it holds: a function may hold itself.
    copier.remember(value, result)
    for cell, twin in zip(cells, twins, strict=True):
        if _filled(cell) and not _filled(twin):
            twin.cell_contents = copier.taken(cell.cell_contents)
    if value.__defaults__ is not None:
        result.__defaults__ = tuple(copier.taken(item) for item in value.__defaults__)
    if value.__kwdefaults__ is not None:
        result.__kwdefaults__ = {k: copier.taken(v) for k, v in value.__kwdefaults__.items()}
    result.__dict__.update({k: copier.taken(v) for k, v in value.__dict__.items()})
    return result


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _inside_function(value: types.FunctionType) -> list[Any]:
    held = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    held += value.__defaults__ or ()
    return [*held, *(value.__kwdefaults__ or {}).values(), *value.__dict__.values()]


def _collect(items: Any, found: set[int]) -> None:
    """Add the ids of what a container holds, and of what the containers in it hold."""
    for item in items.values() if isinstance(items, dict) else items:
        kind = type(item)
        if kind in _ATOMIC or kind in _SHARED_FREELY or id(item) in found:
            continue
        found.add(id(item))
        if kind in _CONTAINERS or kind is tuple:
            _collect(item, found)


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
    types.FunctionType: _copy_function,
    types.BuiltinFunctionType: _copy_bound,
    types.MethodWrapperType: _copy_bound,
    functools.partial: _copy_partial,
    torch.Generator: _copy_generator,
}

_CONTAINERS = frozenset({dict, OrderedDict, list, set})
# Functions are no state: that the model holds one too says nothing.
_SHARED_FREELY = frozenset(
    {types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType}
)
# What a value leads to, by its type, where that is worth a look.
_INSIDE: dict[type, Callable[[Any], Iterable[Any]]] = {
    dict: dict.values,
    OrderedDict: dict.values,
    list: iter,
    tuple: iter,
    set: iter,
    types.FunctionType: _inside_function,
    types.BuiltinFunctionType: lambda value: (value.__self__,),
    types.MethodWrapperType: lambda value: (value.__self__,),
    types.MethodType: lambda value: (value.__self__, value.__func__),
    functools.partial: lambda value: (value.func, value.args, value.keywords),
}
