"""What a model is, apart from the values of its tensors: plain data that a file can hold.

A portrait knows every module by address with its class, the names of its parts and its plain
attributes, which tensors are one, which are frozen, and which layers stay in eval mode. Two models
of one portrait and equal tensors are equal but for what it calls opaque: functions and objects
hung on modules, which only the code that makes the model can make again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.facts import CONFIGURATIONS
from surgery.operations.differences import class_of
from surgery.operations.literals import Opaque, encode
from surgery.operations.norms import StaysInEval, stays_in_eval
from surgery.weights.stored import fills

MODULE_STATE = frozenset(nn.Module().__dict__)
# How far configurations are looked into, and how wide they may be.
_DEPTH, _WIDTH = 4, 1000
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True)
class Form:
    """What one module is, its tensors and children aside.

    Attributes:
        kind: its qualified class.
        facts: its plain attributes as JSON, by name, or by path inside a configuration.
        opaque: the names of all others.
        parameters: the names of its parameters; False where there is none under the name.
        buffers: likewise.
        passing: those of its buffers that are in no state dict.
        modules: the names of its children, likewise.
        hooks: the classes of hooks by which torch computes weights.
    """

    kind: str
    facts: Mapping[str, Any]
    opaque: tuple[str, ...]
    parameters: Mapping[str, bool]
    buffers: Mapping[str, bool]
    passing: tuple[str, ...]
    modules: Mapping[str, bool]
    hooks: tuple[str, ...]

    def parts(self) -> tuple[object, ...]:
        """What must be equal for two modules to hold the same things: class and names."""
        filled = (
            frozenset(name for name, there in slots.items() if there)
            for slots in (self.parameters, self.buffers, self.modules)
        )
        return (self.kind, *filled, self.hooks)


@dataclass(frozen=True)
class Placed:
    """One module where it is.

    Attributes:
        form: what it is.
        addresses: all of its addresses, the first one first.
        training: its mode.
        still: whether it stays in eval mode.
    """

    form: Form
    addresses: tuple[str, ...]
    training: bool
    still: bool


@dataclass(frozen=True)
class Portrait:
    """What a model is, apart from the values of its tensors.

    Attributes:
        modules: every module, by its first address.
        tensors: every parameter and buffer: all of its addresses, by the first.
        frozen: first addresses of parameters that do not train.
    """

    modules: Mapping[str, Placed]
    tensors: Mapping[str, tuple[str, ...]]
    frozen: frozenset[str]


def portrait_of(model: nn.Module) -> Portrait:
    """Look at a model; no value is read.

    Args:
        model: any module; wrappers are passed through.

    Example:
        >>> portrait = portrait_of(nn.Sequential(nn.Linear(3, 2)).requires_grad_(False))
        >>> portrait.modules["0"].form.facts["out_features"], sorted(portrait.frozen)
        (2, ['0.bias', '0.weight'])
    """
    index = tree.index(model)
    seen: set[int] = set()
    modules = {
        addresses[0]: Placed(_form(module, seen), addresses, module.training, stays_in_eval(module))
        for module, addresses in index.modules.values()
    }
    forms = {a: placed.form for placed in modules.values() for a in placed.addresses}
    tensors: dict[str, tuple[str, ...]] = {}
    frozen = []
    for entry in index.of_kind("parameter", "buffer"):
        addresses = tuple(a for a in entry.addresses if _is_slot(forms, a))
        tensors[addresses[0]] = addresses
        if entry.kind == "parameter" and not entry.tensor.requires_grad:
            frozen.append(addresses[0])
    return Portrait(modules, tensors, frozenset(frozen))


def _is_slot(forms: Mapping[str, Form], address: str) -> bool:
    """Whether a tensor is a parameter or buffer there, and not merely hung on a module."""
    owner, name = tree.split(address)
    form = forms[owner]
    return form.parameters.get(name, False) or form.buffers.get(name, False)


def _form(module: nn.Module, seen: set[int]) -> Form:
    facts, opaque = _facts(module, seen)
    return Form(
        class_of(module),
        facts,
        opaque,
        {name: value is not None for name, value in module._parameters.items()},
        {name: value is not None for name, value in module._buffers.items()},
        tuple(sorted(module._non_persistent_buffers_set)),
        {name: value is not None for name, value in module._modules.items()},
        tuple(tree.class_name(type(hook)) for hook in hooks_of(module) if is_torchs_own(hook)),
    )


def hooks_of(module: nn.Module) -> list[Any]:
    """Everything hooked to a module's forward."""
    return [hook for name in _HOOKS for hook in module.__dict__.get(name, {}).values()]


def is_torchs_own(hook: object) -> bool:
    """Whether a hook is how torch computes a weight (old norms, pruning), and not a user's."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _facts(module: nn.Module, seen: set[int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    facts: dict[str, Any] = {}
    opaque = []
    for name, value in module.__dict__.items():
        if name in MODULE_STATE or isinstance(value, StaysInEval):
            continue
        if isinstance(value, list) and value and _are_own(module, value):
            # Recurrent layers list their weights; what refers to them weakly is made from that.
            names = [_own_name(module, item) for item in value]
            facts |= {} if isinstance(value[0], weakref.ref) else {name: {"own": names}}
            continue
        try:
            facts[name] = encode(value)
        except Opaque:
            opaque.append(name)
            if name.strip("_").lower().rpartition("_")[2] in CONFIGURATIONS:
                facts |= _inside(name, value, _DEPTH, seen)
    return facts, tuple(opaque)


def _are_own(module: nn.Module, items: list[Any]) -> bool:
    return any(item is not None for item in items) and all(
        item is None or _own_name(module, item) is not None for item in items
    )


def _own_name(module: nn.Module, item: Any) -> str | None:
    tensor = item() if isinstance(item, weakref.ref) else item
    if not isinstance(tensor, torch.Tensor):
        return None
    slots = (*module._parameters.items(), *module._buffers.items())
    return next((name for name, own in slots if own is tensor), None)


def _inside(path: str, value: Any, depth: int, seen: set[int]) -> dict[str, Any]:
    """The plain values in a configuration, by path. One that several modules hold counts once."""
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    held = value._asdict() if named else value if isinstance(value, Mapping) else _members(value)
    if not depth or id(value) in seen or len(held) > _WIDTH:
        return {}
    if not named:
        seen.add(id(value))
    facts: dict[str, Any] = {}
    for name, item in list(held.items()):
        if not isinstance(name, str) or "." in name:
            continue
        try:
            facts[f"{path}.{name}"] = encode(item)
        except Opaque:
            facts |= _inside(f"{path}.{name}", item, depth - 1, seen)
    return facts


def _members(value: Any) -> Mapping[str, Any]:
    """What an object keeps; of functions, modules and tensors nothing is looked at."""
    if callable(value) or isinstance(value, (nn.Module, torch.Tensor)):
        return {}
    held: Mapping[str, Any] = getattr(value, "__dict__", {})
    return held


def strides_of(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """First addresses of tensors that fill their memory in another order of axes, with strides."""
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        tensor = entry.tensor
        if tensor.layout != torch.strided or tensor.is_contiguous():
            continue
        if fills(tuple(tensor.shape), tensor.stride()):
            yield entry.address, tensor.stride()
