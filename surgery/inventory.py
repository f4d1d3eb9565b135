"""One tight pass over a model that notes every module and every tensor it holds.

Only numbers, names, dtypes and devices stay behind. Whatever can be worked out from them
(addresses, sums, rows) is left to ``surgery.parameters``, for when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.errors import UnsupportedModelError
from surgery.wrappers import class_name, frozen_in, unwrap

Kind: TypeAlias = Literal["parameter", "buffer", "packed"]


class Inventory(NamedTuple):
    """What the pass leaves behind.

    Modules and tensors are numbered in the order in which they are met first, which is that of
    ``named_modules`` and ``named_parameters``. Parameters come first, then buffers, then packed
    weights. Columns of the same length belong together.

    Attributes:
        types: of each module, the name of its class. Number 0 is the root.
        edges: every (parent, name, module) in the order of the walk.
        counts: how many parameters, buffers and packed weights there are.
        holders: of each tensor, the module that holds it first.
        names: of each tensor, its name there.
        elements: of each tensor, how many numbers it holds.
        trainable: of each parameter, whether it requires a gradient.
        dtypes: of each tensor.
        devices: of each tensor; equal ones are one object.
        sizes: bytes of the tensors where they are not elements times item size.
        aliases: further (tensor, module, name) of tensors met before.
        transient: the buffers that are in no state dict under any of their names.
        storages: groups of tensors that are views of one storage.
        plain: (module, name) of tensors hung on a module as plain attributes.
        unread: (module, name) of packed objects that show no tensors.
    """

    types: tuple[str, ...]
    edges: tuple[tuple[int, str, int], ...]
    counts: tuple[int, int, int]
    holders: tuple[int, ...]
    names: tuple[str, ...]
    elements: tuple[int, ...]
    trainable: tuple[bool, ...]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]
    sizes: tuple[tuple[int, int], ...]
    aliases: tuple[tuple[int, int, str], ...]
    transient: frozenset[int]
    storages: tuple[tuple[int, ...], ...]
    plain: tuple[tuple[int, str], ...]
    unread: tuple[tuple[int, str], ...]

    @property
    def kinds(self) -> Iterator[Kind]:
        """Of each tensor, what it is."""
        names: tuple[Kind, Kind, Kind] = ("parameter", "buffer", "packed")
        for kind, count in zip(names, self.counts, strict=True):
            for _ in range(count):
                yield kind


@dataclass(slots=True)
class _Held:
    """Tensors of one kind, in columns, and (tensor, module, name) of those met before."""

    tensors: list[torch.Tensor] = field(default_factory=list)
    holders: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    again: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, tensor: torch.Tensor, holder: int, name: str) -> None:
        self.tensors.append(tensor)
        self.holders.append(holder)
        self.names.append(name)

    def places(self) -> Iterator[tuple[int, tuple[int, str]]]:
        """Every place of every tensor, by number."""
        yield from enumerate(zip(self.holders, self.names, strict=True))
        yield from ((number, (holder, name)) for number, holder, name in self.again)


@dataclass(slots=True)
class _Pass:
    """What the pass fills. A tensor comes once for each place, and an empty buffer as None."""

    types: list[str] = field(default_factory=list)
    edges: list[tuple[int, str, int]] = field(default_factory=list)
    parameters: _Held = field(default_factory=_Held)
    buffers: _Held = field(default_factory=_Held)
    transient: list[tuple[int, str]] = field(default_factory=list)
    telling: list[tuple[int, nn.Module]] = field(default_factory=list)


_PLAIN = frozenset({nn.Parameter, torch.Tensor})
_TELLING = frozenset({torch.Tensor, nn.Parameter, torch.ScriptObject})
# An id that costs no Python object; the public way makes one for each storage.
_storage_id: Any = getattr(torch._C, "_storage_id", None) or (
    lambda tensor: tensor.untyped_storage()._cdata
)


def take_inventory(model: nn.Module) -> Inventory:
    """Note every module and every tensor of a model, each once, wrappers passed through.

    Raises:
        UnsupportedModelError: the model is no module, lazy, scripted or exported.
    """
    if not isinstance(model, nn.Module):
        tree.check_model(model)
    seen = _pass_over(model)
    parameters, buffers = seen.parameters, seen.buffers
    tensors = parameters.tensors + buffers.tensors
    storages = _storages(tensors)
    alone = storages is not None and len(set(storages)) == len(storages)
    if not alone:
        # Only tensors with storages of their own are certainly all different.
        parameters, buffers = _told_apart(seen)
        tensors = parameters.tensors + buffers.tensors
    names = set(map(itemgetter(1), seen.edges))
    if storages is None or "" in names or "." in "".join(names):
        # Lazy tensors are of another type, and tree has the errors for them and for such names.
        tree.check_model(model)
    packed, plain, unread = _look_closer(seen)
    tensors += packed.tensors
    before = len(parameters.tensors)
    return Inventory(
        tuple(seen.types),
        tuple(seen.edges),
        (before, len(buffers.tensors), len(packed.tensors)),
        (*parameters.holders, *buffers.holders, *packed.holders),
        (*parameters.names, *buffers.names, *packed.names),
        tuple(map(torch.Tensor.numel, tensors)),
        tuple(map(attrgetter("requires_grad"), parameters.tensors)),
        tuple(map(attrgetter("dtype"), tensors)),
        _devices(tensors),
        tuple(_sizes(tensors)) if storages is None else (),
        tuple(_aliases(parameters, buffers, packed)),
        _transient(buffers, seen.transient, before),
        () if alone else _groups(parameters.tensors + buffers.tensors),
        tuple(plain),
        tuple(unread),
    )


def _pass_over(model: nn.Module) -> _Pass:
    """The pass itself: inlined, because a call for each tensor would double its time."""
    seen = _Pass()
    known: dict[type, tuple[str, int]] = {}
    modules: dict[int, int] = {}
    types, edges = seen.types, seen.edges
    tensors, holders, names = (
        seen.parameters.tensors,
        seen.parameters.holders,
        seen.parameters.names,
    )
    buffers = seen.buffers
    stack: list[tuple[int, str, nn.Module]] = [(-1, "", model)]
    while stack:
        parent, name, module = stack.pop()
        usual = known.get(type(module))
        if usual is None:
            module = unwrap(module)
            usual = known[type(module)] = _first_sight(module, model)
        new = len(types)
        number = modules.setdefault(id(module), new)
        edges.append((parent, name, number))
        if number != new:
            continue
        types.append(usual[0])
        state = module.__dict__
        for name, tensor in state["_parameters"].items():
            if tensor is not None:
                tensors.append(tensor)
                holders.append(number)
                names.append(name)
        held = state["_buffers"]
        if held:
            buffers.tensors.extend(held.values())
            buffers.names.extend(held)
            buffers.holders.extend((number,) * len(held))
            for name in state["_non_persistent_buffers_set"]:
                seen.transient.append((number, name))
        if len(state) != usual[1] and not _TELLING.isdisjoint(map(type, state.values())):
            seen.telling.append((number, module))
        if state["_modules"]:
            for name, child in reversed(state["_modules"].items()):
                if child is not None:
                    stack.append((number, name, child))
    del edges[0]
    return seen


def _first_sight(module: nn.Module, model: nn.Module) -> tuple[str, int]:
    """The name of a module's class, and how many attributes an ordinary instance has.

    The layers of torch keep no tensors as plain attributes of their own: where one has as many
    attributes as the first of its class, nothing was hung on it, and looking costs a third of
    the pass. Of other classes nothing is presumed (-1).
    """
    cls = type(module)
    if frozen_in(module):
        tree.check_model(model)
    if "_parameters" not in module.__dict__:
        raise UnsupportedModelError(
            "this module was never initialised, so it can hold nothing",
            where=class_name(cls),
            expected="an __init__ that calls nn.Module's",
            found="no parameters, buffers or submodules, not even none",
            fix="call super().__init__() first in its __init__",
        )
    ordinary = cls.__module__.startswith("torch.nn.modules.") and _TELLING.isdisjoint(
        map(type, module.__dict__.values())
    )
    return cls.__name__, len(module.__dict__) if ordinary else -1


def _storages(tensors: Sequence[torch.Tensor | None]) -> list[object] | None:
    """The storage of each tensor; None where one is empty, or not of an ordinary kind."""
    if not _PLAIN.issuperset(map(type, tensors)):
        return None
    try:
        return list(map(_storage_id, tensors))
    except NotImplementedError:
        return None


def _told_apart(seen: _Pass) -> tuple[_Held, _Held]:
    """Parameters and buffers, each tensor once. What is a parameter anywhere counts as one."""
    parameters, buffers = _Held(), _Held()
    known: dict[int, tuple[_Held, int]] = {}
    for met, kept in (seen.parameters, parameters), (seen.buffers, buffers):
        for tensor, holder, name in zip(met.tensors, met.holders, met.names, strict=True):
            if tensor is None:
                continue
            where, number = known.setdefault(id(tensor), (kept, len(kept.tensors)))
            if where is kept and number == len(kept.tensors):
                kept.add(tensor, holder, name)
            else:
                where.again.append((number, holder, name))
    return parameters, buffers


def _look_closer(seen: _Pass) -> tuple[_Held, list[tuple[int, str]], list[tuple[int, str]]]:
    """Packed weights, plain tensors and packed objects that cannot be read."""
    packed = _Held()
    plain: list[tuple[int, str]] = []
    unread: list[tuple[int, str]] = []
    if not seen.telling:
        return packed, plain, unread
    held = set(map(id, seen.parameters.tensors + seen.buffers.tensors))
    known: dict[int, range] = {}
    for module, owner in seen.telling:
        for name, value in owner.__dict__.items():
            if isinstance(value, torch.Tensor):
                if id(value) not in held:
                    plain.append((module, name))
            elif isinstance(value, torch.ScriptObject):
                if id(value) in known:
                    packed.again.extend((number, module, name) for number in known[id(value)])
                    continue
                before = len(packed.tensors)
                for tensor in _packed_tensors(value):
                    packed.add(tensor.detach(), module, name)
                known[id(value)] = range(before, len(packed.tensors))
                if not known[id(value)]:
                    unread.append((module, name))
    return packed, plain, unread


def _packed_tensors(value: torch.ScriptObject) -> Iterator[torch.Tensor]:
    """The tensors in a packed object, each once."""
    # Layers unpack; the cells of a recurrent layer only show their state.
    for reader in ("unpack", "__getstate__"):
        try:
            shown = getattr(value, reader)()
        except (AttributeError, RuntimeError):
            continue
        leaves = list(_leaves(shown))
        objects = [leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject)]
        for packed in objects:
            yield from _packed_tensors(packed)
        if not objects:
            # Beside packed objects, tensors are the biases that are packed in them as well.
            yield from (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        return


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _aliases(*kinds: _Held) -> Iterator[tuple[int, int, str]]:
    before = 0
    for held in kinds:
        yield from ((before + number, module, name) for number, module, name in held.again)
        before += len(held.tensors)


def _transient(buffers: _Held, names: list[tuple[int, str]], before: int) -> frozenset[int]:
    """Buffers of which no name is in the state dict."""
    if not names:
        return frozenset()
    transient = set(names)
    kept = {number for number, place in buffers.places() if place not in transient}
    return frozenset(before + number for number in set(range(len(buffers.tensors))) - kept)


def _devices(tensors: Sequence[torch.Tensor]) -> tuple[torch.device, ...]:
    devices = list(map(attrgetter("device"), tensors))
    if devices and devices.count(devices[0]) == len(devices):
        return (devices[0],) * len(devices)
    one = {device: device for device in devices}
    return tuple(map(one.__getitem__, devices))


def _groups(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    """Tensors that are views of one storage, by number."""
    groups: dict[object, list[int]] = {}
    for number, tensor in enumerate(tensors):
        groups.setdefault(_storage(tensor), []).append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _storage(tensor: torch.Tensor) -> object:
    try:
        return _storage_id(tensor)
    except NotImplementedError:
        return ("sparse or opaque", id(tensor))


def _sizes(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Bytes of sparse tensors, and of tensor subclasses that are made of others."""
    for number, tensor in enumerate(tensors):
        parts = _parts(tensor.detach() if tensor.layout != torch.strided else tensor)
        if parts:
            yield number, sum(part.numel() * part.element_size() for part in parts)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        return [getattr(tensor, name) for name in flatten()[0]]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []
