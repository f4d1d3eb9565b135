"""Which parameters an operation took away and which it put there, tensor by tensor."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from surgery import tree
from surgery.operations.plan import Carried, Outcome, Step


@dataclass(eq=False)
class Gone:
    """A parameter that the model has no longer.

    Attributes:
        tensor: the parameter.
        address: where it was first.
        part: the number of the step that took it away.
    """

    tensor: torch.Tensor
    address: str
    part: int


@dataclass(eq=False)
class Come:
    """A parameter that the model has now.

    Attributes:
        tensor: the parameter.
        address: where it is first.
        part: the number of the step that put it there.
        place: the address of the part that the step changed.
        before: the parameter whose place it took, where there is one.
        carried: which entries of that one live on in it.
        unfrozen: it was there all along, and trains from now on.
    """

    tensor: torch.Tensor
    address: str
    part: int
    place: str
    before: torch.Tensor | None = None
    carried: Carried | None = None
    unfrozen: bool = False


@dataclass(eq=False)
class Exchange:
    """What an operation, or undoing it, did to the parameters of a model.

    Attributes:
        gone: those that are no longer there, by ``id``.
        come: those that are there now, by ``id``, in the order of the steps.
        refilled: those that stayed and got other values, by ``id``, each with its address.
        moved: those that are at another address now, by ``id``: from where, and to where.
    """

    gone: dict[int, Gone] = field(default_factory=dict)
    come: dict[int, Come] = field(default_factory=dict)
    refilled: dict[int, tuple[torch.Tensor, str]] = field(default_factory=dict)
    moved: dict[int, tuple[str, str]] = field(default_factory=dict)

    def without_unfrozen(self, held: Container[int] | None) -> Exchange:
        """Less what only trains now, of it what is held already, or all of it for None."""
        come = {
            key: each
            for key, each in self.come.items()
            if not each.unfrozen or (held is not None and key not in held)
        }
        return replace(self, come=come)

    def back(self) -> Exchange:
        """What undoing it does."""
        after = {id(come.before): come for come in self.come.values()}
        come = {}
        for key, each in self.gone.items():
            taker = after.get(key)
            before = None if taker is None else taker.tensor
            come[key] = Come(each.tensor, each.address, each.part, each.address, before)
        gone = {k: Gone(c.tensor, c.address, c.part) for k, c in self.come.items()}
        moved = {key: (after, before) for key, (before, after) in self.moved.items()}
        return Exchange(gone, come, dict(self.refilled), moved)


def exchange_of(outcome: Outcome) -> Exchange:
    """What an outcome of any verb did to the parameters of its model."""
    found = Exchange()
    for part, step in enumerate(outcome.plan.steps):
        if step.kind == "values":
            here = outcome.new[step.address]
            found.refilled[id(here)] = (here, step.address)
            continue
        if step.kind == "flag":
            there = tree.get(outcome.model, step.address)
            if step.new and isinstance(there, torch.Tensor):
                coming = Come(there, step.address, part, step.address, unfrozen=True)
                found.come.setdefault(id(there), coming)
            continue
        old, new = dict(_old(outcome, step)), dict(_new(outcome, step))
        stays = {id(tensor) for tensor in new.values()}
        for address, tensor in old.items():
            if id(tensor) not in stays:
                found.gone.setdefault(id(tensor), Gone(tensor, address, part))
        found.moved.update(_moved(old, new))
        if step.kind == "root":
            found.moved.update(_moved_inside(outcome, step))
        left = {id(tensor) for tensor in old.values()}
        for address, tensor in new.items():
            if id(tensor) not in left:
                before = old.get(address)
                coming = Come(tensor, address, part, step.address, before, step.carried)
                found.come.setdefault(id(tensor), coming)
    for key in found.gone.keys() & found.come.keys():
        # It moved from one place to another.
        found.moved[key] = found.gone[key].address, found.come[key].address
        del found.gone[key], found.come[key]
    return found


def _moved(
    old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """What one step put to another address."""
    to = {id(tensor): address for address, tensor in reversed(new.items())}
    for address, tensor in old.items():
        if new.get(address) is not tensor and id(tensor) in to:
            yield id(tensor), (address, to[id(tensor)])


def _moved_inside(outcome: Outcome, step: Step) -> Iterator[tuple[int, tuple[str, str]]]:
    """The parameters of a model that lives on inside a new root."""
    before = outcome.operated.given if outcome.operated is not None else None
    if before is None:
        return
    now = {id(each.tensor): each.address for each in tree.index(step.new).of_kind("parameter")}
    for entry in tree.index(before).of_kind("parameter"):
        after = now.get(id(entry.tensor), entry.address)
        if after != entry.address:
            yield id(entry.tensor), (entry.address, after)


def _old(outcome: Outcome, step: Step) -> Iterator[tuple[str, torch.Tensor]]:
    if step.kind in ("parameter", "left"):
        yield from ((a, outcome.old[a]) for a in step.addresses if a in outcome.old)
    elif step.kind in ("module", "root"):
        for address, tensor in outcome.old.items():
            inside = any(
                root in ("", address) or address.startswith(f"{root}.") for root in step.addresses
            )
            if inside and isinstance(tensor, nn.Parameter):
                yield address, tensor


def _new(outcome: Outcome, step: Step) -> Iterator[tuple[str, torch.Tensor]]:
    added = step.kind == "attribute" and isinstance(step.new, nn.Parameter)
    if step.kind == "parameter" or added:
        yield from ((address, step.new) for address in step.addresses)
    elif step.kind in ("module", "root"):
        # A model that lives on inside a new root brings nothing new.
        installed = {id(tensor) for tensor in outcome.new.values()}
        entries = tree.index(step.new).of_kind("parameter")
        for entry in (each for each in entries if id(each.tensor) in installed):
            for root in step.addresses:
                yield from ((tree.join(root, inner), entry.tensor) for inner in entry.addresses)
