"""Layers that move statistics in train mode, and those that were told to hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery import tree
from surgery.operations.journal import Change, get_entry, set_entry


class StaysInEval:
    """Takes the place of one module's ``train``: the module answers as in eval mode, always.

    An attribute of the module, so that it goes along with ``copy.deepcopy`` and ``pickle`` (which
    needs ``surgery`` to be importable when it is read), and costs nothing in forward, compiled or
    not. A ``state_dict`` does not carry it into another model.

    Args:
        module: the module that stays in eval mode; what lies inside it does not.
        asked: the mode that was last asked for and is not taken; None where nobody asked.
        own: a ``train`` that the user had hung on the module, or None.
    """

    def __init__(self, module: nn.Module, asked: bool | None = None, own: Any = None) -> None:
        self.module = module
        self.asked = asked
        self.own = own

    def __call__(self, mode: bool = True) -> nn.Module:
        """What ``module.train(mode)`` does now: it reaches the modules inside, and is noted."""
        self.asked = bool(mode)
        self.module.training = False
        for child in self.module.children():
            child.train(mode)
        return self.module

    def __repr__(self) -> str:
        return "stays in eval mode"


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that moves statistics in train mode, or stays in eval mode.

    Attributes:
        module: the module.
        addresses: all of its addresses.
        held: addresses of the module and of its statistics.
        parameters: for each of its parameters, all addresses of that.
    """

    module: nn.Module
    addresses: tuple[str, ...]
    held: frozenset[str]
    parameters: tuple[frozenset[str], ...]

    def among(self, addresses: frozenset[str]) -> bool:
        """Whether addresses name the layer, its statistics, or every one of its parameters."""
        if not self.held.isdisjoint(addresses):
            return True
        return bool(self.parameters) and not any(map(addresses.isdisjoint, self.parameters))

    def partly_among(self, addresses: frozenset[str]) -> bool:
        """Whether addresses name some of the layer's parameters, and not the layer."""
        touched = not all(map(addresses.isdisjoint, self.parameters))
        return touched and not self.among(addresses)


def layers(model: nn.Module) -> Iterator[Layer]:
    """Every layer of a model that moves statistics, or stays in eval mode.

    Args:
        model: any module; wrappers are passed through.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> [layer.addresses for layer in layers(model)]
        [('1',)]
    """
    index = tree.index(model)
    owners = {address: module for module, all_ in index.modules.values() for address in all_}
    for module, addresses in index.modules.values():
        names = statistics(module)
        if not names and not stays_in_eval(module):
            continue
        held = {tree.join(address, name) for address in addresses for name in names}
        slots = module._parameters
        if not slots and _IN_A_PARAMETRIZATION.issubset(names):
            # The weight that it looks at belongs to the list of parametrizations it is one of.
            slots = owners[tree.split(addresses[0])[0]]._parameters
        parameters = [frozenset(index.addresses(p)) for p in slots.values() if p is not None]
        yield Layer(module, addresses, frozenset((*addresses, *held)), tuple(parameters))


# The two vectors of a power iteration, as torch's parametrization for spectral norms keeps them.
_IN_A_PARAMETRIZATION = {"_u", "_v"}


def statistics(module: nn.Module) -> tuple[str, ...]:
    """The buffers that a layer moves in train mode, by what it holds, not its class.

    Running statistics, and the vectors of the power iteration behind a spectral norm.
    """
    there = {name for name, value in module._buffers.items() if value is not None}
    found = [name for name in there if name.startswith("running_")]
    if there >= _IN_A_PARAMETRIZATION:
        found += _IN_A_PARAMETRIZATION
    for name in module._parameters:
        # As the older spectral norm, a hook, keeps them.
        stem = name.removesuffix("_orig")
        vectors = {f"{stem}_u", f"{stem}_v"}
        if stem != name and there >= vectors:
            found += vectors
    return tuple(sorted(found))


def stays_in_eval(module: nn.Module) -> bool:
    """Whether a layer was told to stay in eval mode."""
    return still_of(module) is not None


def still_of(module: nn.Module) -> StaysInEval | None:
    """What holds a layer in eval mode, or None."""
    held = module.__dict__.get("train")
    return held if isinstance(held, StaysInEval) else None


@dataclass(frozen=True, eq=False)
class TrainChange(Change):
    """A module began or ceased to stay in eval mode; taken back, its mode is what it would be.

    Attributes:
        mode: whether the module was in train mode right after the operation.
    """

    mode: bool = False

    def put(self, value: Any) -> None:
        """Put the old ``train`` back, and give the module the mode that goes with it."""
        if isinstance(self.before, StaysInEval):
            # It is held again: what it holds out against is the mode that it was given since.
            now = get_entry(self.owner, "training")
            self.before.asked = self.before.asked if now is self.mode else now
            set_entry(self.owner, "training", False)
        elif self.after.asked:
            set_entry(self.owner, "training", True)
        super().put(value)


def following(changes: Iterable[tuple[Change, Any]]) -> tuple[tuple[Change, Any], ...]:
    """Changes to take back, where layers that were held or let go follow modes set meanwhile.

    Args:
        changes: each with what undo keeps beside it.
    """
    listed = list(changes)
    trains = [change for change, _ in listed if change.key == "train" and _of_mode(change)]
    owners = {id(change.owner) for change in trains}
    found: list[tuple[Change, Any]] = []
    for change, kept in listed:
        if change in trains:
            fields = {
                field.name: getattr(change, field.name) for field in dataclasses.fields(change)
            }
            mode = bool(get_entry(change.owner, "training"))
            found.append((TrainChange(**fields, mode=mode), kept))
        elif change.key != "training" or id(change.owner) not in owners:
            found.append((change, kept))
    return tuple(found)


def _of_mode(change: Change) -> bool:
    return isinstance(change.before, StaysInEval) or isinstance(change.after, StaysInEval)
