"""Addresses: where every module, parameter and buffer of a model lives.

An address is the dotted path that ``named_modules`` and ``state_dict`` use, except that it
passes straight through wrappers: ``fc.weight`` and not ``_orig_mod.fc.weight``. A shared module
or tensor has one address for each way that leads to it; this file is the only one that knows
them all, and every other asks it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from surgery.errors import AddressError, ArgumentError, UnsupportedModelError, WrappedModelError
from surgery.wrappers import carried, class_name, frozen_in, mixin_of, unwrap, wrapper_of

# Everybody asks this file, also for what it only passes on.
__all__ = ["class_name", "unwrap", "wrapper_of"]
__all__ += ["Entry", "Index", "Member", "TensorKind", "check_changeable", "check_model"]
__all__ += ["get", "get_module", "index", "join", "put", "split", "walk"]

TensorKind: TypeAlias = Literal["parameter", "buffer", "attribute"]
Member: TypeAlias = nn.Module | torch.Tensor


def join(address: str, name: str) -> str:
    """The address of ``name`` inside the module at ``address`` (``""`` is the root).

    Example:
        >>> join("layer1.0", "weight"), join("", "fc")
        ('layer1.0.weight', 'fc')
    """
    return f"{address}.{name}" if address else name


def split(address: str) -> tuple[str, str]:
    """The owner's address (``""`` is the root) and the last name.

    Example:
        >>> split("layer1.0.weight"), split("fc")
        (('layer1.0', 'weight'), ('', 'fc'))
    """
    owner, _, name = address.rpartition(".")
    return owner, name


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with every one of its addresses, in the order of ``named_modules``.

    A shared module comes once for each address, together with all that is inside it. A module
    that contains itself is not entered again below itself.

    Args:
        model: any module, wrapped or not.

    Yields:
        The address and the module, parents first, wrappers passed through.

    Example:
        >>> import torch
        >>> relu = torch.nn.ReLU()
        >>> [address for address, _ in walk(torch.nn.Sequential(relu, relu))]
        ['', '0', '1']
    """
    pending: list[tuple[str, nn.Module, frozenset[int]]] = [("", unwrap(model), frozenset())]
    while pending:
        address, module, above = pending.pop()
        yield address, module
        if module._modules:
            above |= {id(module)}
            prefix = join(address, "")
            for name, child in reversed(module._modules.items()):
                if child is not None and id(inner := unwrap(child)) not in above:
                    pending.append((prefix + name, inner, above))


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One tensor of a model and every address that leads to it.

    Attributes:
        tensor: the tensor itself.
        kind: ``parameter`` where it is one under any address, else ``buffer``, else
            ``attribute``: a plain tensor hung on a module.
        addresses: all of them: as a parameter, then as a buffer, then as an attribute.
    """

    tensor: torch.Tensor
    kind: TensorKind
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        """The first address, in the order of ``named_parameters``."""
        return self.addresses[0]


@dataclass(frozen=True, eq=False)
class Index:
    """Every module and tensor of a model, each once, by identity.

    Attributes:
        root: the model, out of its wrappers.
        modules: ``id(module)`` to the module and its addresses, in the order of ``named_modules``.
        tensors: ``id(tensor)`` to its entry: parameters in the order of ``named_parameters``,
            then buffers in the order of ``named_buffers``, then plain attributes.
    """

    root: nn.Module
    modules: Mapping[int, tuple[nn.Module, tuple[str, ...]]]
    tensors: Mapping[int, Entry]

    def addresses(self, target: Member) -> tuple[str, ...]:
        """Every address of a module or tensor; empty where the model does not hold it."""
        if isinstance(target, torch.Tensor):
            entry = self.tensors.get(id(target))
            return entry.addresses if entry else ()
        found = self.modules.get(id(unwrap(target)))
        return found[1] if found else ()

    def of_kind(self, *kinds: TensorKind) -> Iterator[Entry]:
        """The tensors of these kinds, each once."""
        return (entry for entry in self.tensors.values() if entry.kind in kinds)


# What the attributes of nearly every layer are: where all are of these types, none is a tensor.
_NO_TENSORS = {NoneType, bool, int, float, str, tuple, list, set, dict, OrderedDict}


def index(model: nn.Module) -> Index:
    """Find every module and tensor of a model, with every address of each.

    Args:
        model: any module, wrapped or not.

    Returns:
        The index. Shared modules and tied tensors appear once, with all their addresses.

    Example:
        >>> import torch
        >>> tied = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        >>> tied["b"].weight = tied["a"].weight
        >>> index(tied).addresses(tied["a"].weight)
        ('a.weight', 'b.weight')
    """
    modules: dict[int, tuple[nn.Module, list[str]]] = {}
    parameters: list[tuple[str, torch.Tensor]] = []
    buffers: list[tuple[str, torch.Tensor]] = []
    plain: list[tuple[str, torch.Tensor]] = []
    for address, module in walk(model):
        modules.setdefault(id(module), (module, []))[1].append(address)
        prefix = join(address, "")
        parameters += [(prefix + n, t) for n, t in module._parameters.items() if t is not None]
        buffers += [(prefix + n, t) for n, t in module._buffers.items() if t is not None]
        own = vars(module)
        if not _NO_TENSORS.issuperset(map(type, own.values())):
            hung = ((n, t) for n, t in own.items() if isinstance(t, torch.Tensor))
            plain += [(prefix + n, t) for n, t in hung if _home(module, n) is own]
    tensors: dict[int, tuple[torch.Tensor, TensorKind, list[str]]] = {}
    kinds: tuple[TensorKind, ...] = ("parameter", "buffer", "attribute")
    for kind, tensors_of_kind in zip(kinds, (parameters, buffers, plain), strict=True):
        for address, tensor in tensors_of_kind:
            tensors.setdefault(id(tensor), (tensor, kind, []))[2].append(address)
    return Index(
        unwrap(model),
        {key: (module, tuple(found)) for key, (module, found) in modules.items()},
        {key: Entry(tensor, kind, tuple(found)) for key, (tensor, kind, found) in tensors.items()},
    )


def get(model: nn.Module, address: str) -> Member:
    """The module, parameter, buffer or plain tensor at an address.

    Args:
        model: any module, wrapped or not.
        address: as ``index`` gives it. The names that wrappers add to it in ``named_modules`` and
            ``state_dict`` (``_orig_mod``, ``module``) are understood and not needed.

    Returns:
        The module out of its wrappers, or the tensor: the object itself.

    Raises:
        AddressError: nothing lives there; the error lists what does.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4))
        >>> get(net, "0.weight") is get(torch.nn.DataParallel(net), "module.0.weight")
        True
    """
    target: Member = _way(model, address)[-1][1]
    return target


def get_module(model: nn.Module, address: str) -> nn.Module:
    """The module at an address.

    Args:
        model: any module, wrapped or not.
        address: as for ``get``.

    Returns:
        The module out of its wrappers.

    Raises:
        AddressError: there is a tensor, or nothing.

    Example:
        >>> import torch
        >>> get_module(torch.nn.Sequential(torch.nn.ReLU()), "0")
        ReLU()
    """
    found = get(model, address)
    if isinstance(found, nn.Module):
        return found
    raise AddressError(
        "a module is needed here and this is a tensor",
        where=address,
        expected="the address of a module",
        found=f"a tensor of shape {tuple(found.shape)}",
        fix=f"use {split(address)[0]!r}, the module that owns it",
    )


def put(model: nn.Module, address: str, value: Member) -> Member:
    """Set one address to another module or tensor of the same sort, and return what was there.

    Other addresses of a shared thing are not followed: ask ``index`` for them. The order of the
    members stays. Modules and parameters go through ``setattr``, as a user's own assignment
    would, so that layers which keep lists of their weights (``nn.LSTM``) stay consistent.

    A wrapped layer inside the model is replaced with its wrapper, since ``torch.compile``'s keeps
    calling the layer it was made for.

    Args:
        model: any module, wrapped or not. What forbids a change is ``check_changeable``'s to say.
        address: of what is there now.
        value: a module for a module, a parameter for a parameter, a tensor for another tensor.

    Returns:
        What was there, wrapper included: putting it back restores the model.

    Raises:
        AddressError: nothing lives there, it is the root, or it is computed from other tensors.
        ArgumentError: the value is of another sort.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> put(net, "1", torch.nn.GELU())
        ReLU()
    """
    way = _way(model, address)
    while len(way) > 1 and wrapper_of(way[-2][1]) is not None:
        way.pop()
    if len(way) == 1:
        what, fix = "the root cannot be set inside itself", "use the new model in its place"
        raise AddressError(what, where="(the model itself)", fix=fix)
    owner, (name, old) = way[-2][1], way[-1]
    computed = _computed(owner, split(address)[0], name)
    if computed is not None:
        raise computed
    _check_sort(address, old, value)
    home = _home(owner, name)
    if home is owner._modules or home is owner._parameters:
        setattr(owner, name, value)
    else:
        # setattr would register a Parameter that was kept as a buffer or hung on as an attribute.
        home[name] = value
    previous: Member = old
    return previous


def _home(module: nn.Module, name: str) -> dict[str, Any]:
    """The dict of the module that holds this member; its attributes where none does."""
    homes: tuple[dict[str, Any], ...] = (module._modules, module._parameters, module._buffers)
    return next((home for home in homes if home.get(name) is not None), vars(module))


def _member(module: nn.Module, name: str) -> Member | None:
    home = _home(module, name)
    value: Member | None = home.get(name)
    # Of plain attributes only tensors count: a module hung there is no part of the model.
    return value if home is not vars(module) or isinstance(value, torch.Tensor) else None


# The sorts that cannot stand for each other, the narrowest first, and how to make one.
_SORTS: Mapping[type, str] = {
    nn.Module: "pass a torch.nn.Module",
    nn.Parameter: "torch.nn.Parameter(tensor)",
    torch.Tensor: "parameter.detach()",
}


def _check_sort(address: str, old: Member, new: object) -> None:
    expected, found = (
        next((sort for sort in _SORTS if isinstance(value, sort)), type(value))
        for value in (old, new)
    )
    if found is not expected:
        raise ArgumentError(
            f"a {expected.__name__} can only be replaced by a {expected.__name__}",
            where=address,
            expected=class_name(expected),
            found=class_name(type(new)),
            fix=_SORTS[expected],
        )


# Name and object of everything passed on the way to an address, the model first, the target last,
# wrappers included. All but the target are modules.
_Way: TypeAlias = list[tuple[str, Any]]


def _way(model: nn.Module, address: str) -> _Way:
    if not isinstance(address, str):
        raise AddressError(
            "an address is a dotted name",
            where=repr(address),
            expected="a str",
            found=class_name(type(address)),
            fix=f"surgery.tree.get(model, '{address}')",
        )
    names = address.split(".") if address else []
    way = _trace("", model, names)
    if way is None:
        raise _no_such(model, names)
    return way


def _trace(name: str, node: Any, rest: list[str]) -> _Way | None:
    """The way on from a node by the names that are left, or None where there is none."""
    way: _Way | None = []
    if isinstance(node, torch.Tensor):
        way = None if rest else []
    elif (wrapper := wrapper_of(node)) is not None:
        # A member of the carried model comes first: it may itself be called "module".
        attribute, inner = wrapper.attribute, carried(node, wrapper)
        way = _trace(attribute, inner, rest)
        if way is None and rest[:1] == [attribute]:
            way = _trace(attribute, inner, rest[1:])
    elif rest:
        member = _member(node, rest[0])
        way = None if member is None else _trace(rest[0], member, rest[1:])
    return None if way is None else [(name, node), *way]


def _no_such(model: nn.Module, names: list[str]) -> AddressError:
    address = ".".join(names)
    reached, way = len(names), None
    while way is None:
        reached -= 1
        way = _trace("", model, names[:reached])
    owner, here, name = way[-1][1], ".".join(names[:reached]), names[reached]
    if isinstance(owner, torch.Tensor):
        return AddressError(
            f"{here!r} is a tensor and has nothing inside it",
            where=address,
            fix=f"surgery.tree.get(model, {here!r})",
        )
    computed = _computed(owner, here, name)
    if computed is not None:
        return computed
    held = (owner._modules, owner._parameters, owner._buffers)
    members = [key for home in held for key, value in home.items() if value is not None]
    close = get_close_matches(name, members, n=1)
    shown = ", ".join(members[:12]) + (", ..." if len(members) > 12 else "")
    inside = f"{here!r}, a {type(owner).__name__}" if here else f"the {type(owner).__name__}"
    return AddressError(
        f"nothing is called {name!r} in {inside}",
        where=address,
        expected=f"one of: {shown}" if members else "no name: it holds nothing",
        found=name,
        fix=f"did you mean {join(here, close[0])!r}?" if close else "surgery.tree.index(model)",
    )


def _sources(module: nn.Module, name: str) -> list[str]:
    """The names a parametrized, normed or pruned tensor is computed from, if it is."""
    made = getattr(module._modules.get("parametrizations"), "_modules", {}).get(name)
    if made is not None:
        return [f"parametrizations.{name}.{key}" for key in (*made._parameters, *made._buffers)]
    if isinstance(vars(module).get(name), torch.Tensor):
        originals = (name + suffix for suffix in ("_orig", "_g", "_v"))
        return [original for original in originals if original in module._parameters]
    return []


def _computed(owner: nn.Module, here: str, name: str) -> AddressError | None:
    sources = _sources(owner, name)
    if not sources:
        return None
    return AddressError(
        f"{name!r} is computed from other tensors at every forward",
        where=join(here, name),
        expected="a tensor that the model keeps",
        found=f"one made from {', '.join(sources)}",
        fix=f"use {join(here, sources[0])!r}, or replace the module",
    )


def check_model(model: object) -> nn.Module:
    """Refuse what cannot be operated on at all: no module, lazy, scripted or exported.

    Args:
        model: what a user handed in.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: with what to pass instead.

    Example:
        >>> import torch
        >>> check_model(torch.nn.ReLU())
        ReLU()
    """
    if not isinstance(model, nn.Module):
        exported = class_name(type(model)).startswith("torch.export.")
        raise UnsupportedModelError(
            "this is no model",
            where="model",
            expected="a torch.nn.Module",
            found=f"the class {model}" if isinstance(model, type) else class_name(type(model)),
            fix="the module it was exported from" if exported else "the module itself: Net()",
        )
    for address, module in walk(model):
        fault = frozen_in(module)
        if fault is not None:
            raise _unsupported(address, module, *fault)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                what = "a lazy layer that has seen no input yet has no sizes"
                raise _unsupported(join(address, name), module, what, "run a batch: model(example)")
        for name in module._modules:
            if not name or "." in name:
                what = f"the name {name!r} cannot be told from a path: setattr follows no dots"
                fix = f"owner.add_module('name', owner._modules.pop({name!r})), or delete it"
                raise _unsupported(join(address, name), module, what, fix)
    return model


def _unsupported(address: str, module: nn.Module, what: str, fix: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        what,
        where=address or "(the model itself)",
        expected="an eager torch.nn.Module that is ready to run",
        found=class_name(type(module)),
        fix=fix,
    )


def check_changeable(model: nn.Module, address: str = "") -> None:
    """Refuse to change what lies inside DataParallel, DistributedDataParallel or FSDP.

    Args:
        model: any module, wrapped or not.
        address: of what is to be changed; ``""`` asks for the model as a whole.

    Raises:
        WrappedModelError: a wrapper that forbids it stands on the way; with the remedy.
        AddressError: nothing lives there.

    Example:
        >>> import torch
        >>> check_changeable(torch.nn.DataParallel(torch.nn.Linear(2, 2)))
        Traceback (most recent call last):
            ...
        surgery.errors.WrappedModelError: the model is inside DataParallel: ...
    """
    raw = ""
    for name, node in _way(model, address):
        raw = join(raw, name)
        wrapper, mixin = wrapper_of(node), mixin_of(node)
        if mixin is not None:
            kind, reason = mixin
            remedy = f"operate before {kind}()"
        elif wrapper is not None and not wrapper.changeable:
            kind, reason = type(node).__name__, wrapper.refusal
            inner = f"get_submodule({join(raw, wrapper.attribute)!r})" if raw else wrapper.attribute
            remedy = f"operate on model.{inner}, then wrap it again"
        else:
            continue
        raise WrappedModelError(
            f"{repr(raw) if raw else 'the model'} is inside {kind}: {reason}",
            where=address or "(the model itself)",
            expected="the bare model",
            found=class_name(type(node)),
            fix=remedy,
        )
