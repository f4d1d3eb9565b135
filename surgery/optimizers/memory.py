"""What optimizers were before they followed operations, for as long as those can be undone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.optim import Optimizer

from surgery.operations.plan import Outcome
from surgery.operations.undoing import Operated
from surgery.optimizers.exchange import Exchange
from surgery.optimizers.keepers import States
from surgery.optimizers.places import Lists


@dataclass(eq=False)
class Memory:
    """One optimizer before it followed one operation.

    Attributes:
        title: the operation.
        before: what the groups held.
        after: what they held afterwards.
        states: the state of every parameter that the operation concerned, as it was.
        exchange: what the operation did.
        model: the optimizer's, which may be another than the operation was called on.
        averages: the same operation on averaged copies; undoing the first undoes all.
    """

    title: str
    before: Lists
    after: Lists
    states: list[tuple[torch.Tensor, States]]
    exchange: Exchange
    model: ref[nn.Module]
    averages: tuple[Outcome, ...] = field(default=())


# Not on the optimizers, whose attributes and pickles are the user's. What is remembered goes with
# the optimizer, and with the outcome or its commit(): nobody can undo that then.
_followed: WeakKeyDictionary[Optimizer, WeakKeyDictionary[Operated, None]]
_followed = WeakKeyDictionary()


def memory_of(optimizer: Optimizer, operated: Operated) -> Memory | None:
    """What an optimizer was before it followed an operation, None where it did not."""
    found: Memory | None = operated.followed.get(optimizer)
    return found


def memories_of(optimizer: Optimizer) -> Iterator[tuple[Operated, Memory]]:
    """Every operation that an optimizer followed, as far as somebody could undo it."""
    for operated in list(_followed.get(optimizer, ())):
        memory = memory_of(optimizer, operated)
        if memory is None or (operated.over and "undone" not in operated.over):
            forget(optimizer, operated)
        else:
            yield operated, memory


def held_by_others(optimizer: Optimizer, operated: Operated) -> set[int]:
    """By ``id`` what other optimizers hold that followed the same operation."""
    return {key for each in _others(optimizer, operated) for key in each.after.where()}


def averages_of_others(optimizer: Optimizer, operated: Operated) -> set[int]:
    """By ``id`` the averaged copies that others brought along to the same operation."""
    followed = _others(optimizer, operated)
    return {id(done.model) for memory in followed for done in memory.averages}


def _others(optimizer: Optimizer, operated: Operated) -> list[Memory]:
    return [memory for each, memory in operated.followed.items() if each is not optimizer]


def remember(optimizer: Optimizer, operated: Operated, memory: Memory) -> None:
    """Remember what an optimizer was before it followed an operation."""
    operated.followed[optimizer] = memory
    _followed.setdefault(optimizer, WeakKeyDictionary())[operated] = None


def forget(optimizer: Optimizer, operated: Operated) -> None:
    """It is as it was: there is nothing to remember."""
    operated.followed.pop(optimizer, None)
    _followed.get(optimizer, WeakKeyDictionary()).pop(operated, None)
