"""Optimizers inside optimizers: whose groups count, and who keeps what was learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from surgery.errors import ArgumentError
from surgery.operations.journal import Journal

State: TypeAlias = dict[str, Any]
# The states of one parameter, one for each keeper; None where a keeper has none.
States: TypeAlias = "tuple[State | None, ...]"


@dataclass(frozen=True, eq=False)
class Keepers:
    """The optimizers that make one.

    Attributes:
        optimizer: whose groups count: the innermost that has all of them.
        parts: those inside it that step some of its groups each, and keep their state.
        around: those around it, which keep what they need from one step to the next.
    """

    optimizer: Optimizer
    parts: tuple[Optimizer, ...] = ()
    around: tuple[Optimizer, ...] = ()

    @classmethod
    def of(cls, optimizer: Optimizer) -> Keepers:
        """What an optimizer is made of.

        Raises:
            ArgumentError: it steps through others, and its groups are not theirs.
        """
        around: list[Optimizer] = []
        while True:
            found = list(_inside(optimizer))
            whole = next((each for each in found if _has_all(each, optimizer)), None)
            if whole is None:
                break
            if _state(optimizer) is not _state(whole):
                around.append(optimizer)
            optimizer = whole
        groups = set(map(id, optimizer.param_groups))
        for each in found:
            if not groups.issuperset(map(id, each.param_groups)):
                raise ArgumentError(
                    "this optimizer steps through others, which have groups of their own",
                    where="optimizer",
                    expected="an optimizer that has the groups of those inside it",
                    found=f"{type(optimizer).__name__}, and {type(each).__name__} inside it",
                    fix="surgery.follow(each, outcome) for each optimizer inside it, then make "
                    "what holds them anew",
                )
        inner = [cls.of(each) for each in found]
        parts = [part for each in inner for part in (each.optimizer, *each.parts)]
        around += [outer for each in inner for outer in each.around]
        return cls(optimizer, tuple(parts), tuple(around))

    def __iter__(self) -> Iterator[Optimizer]:
        """All of them, the one whose groups count first."""
        return iter((self.optimizer, *self.parts, *self.around))

    def states(self, tensor: torch.Tensor) -> States:
        """What each of them keeps of a parameter."""
        return tuple(_state(each).get(tensor) for each in self)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether any of them keeps anything of a parameter."""
        return any(self.states(tensor))

    def put(self, tensor: torch.Tensor, states: Iterable[State | None]) -> None:
        """Let each keep this of a parameter; nothing where nothing is given."""
        for each, state in zip(self, chain(states, repeat(None)), strict=False):
            held = _state(each)
            if state is not None:
                held[tensor] = state
            elif tensor in held:
                del held[tensor]

    def remember(self, journal: Journal) -> None:
        """Note what they keep, to be taken back."""
        for each in self:
            journal.remember(_state(each))


def _state(optimizer: Optimizer) -> dict[torch.Tensor, State]:
    held: dict[torch.Tensor, State] = getattr(optimizer, "state", {})
    return held


def _inside(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizers that one keeps, and that step what it steps."""
    own = _parameters(optimizer)
    for name, value in vars(optimizer).items():
        listed = value.values() if isinstance(value, dict) else value
        for each in listed if isinstance(listed, list | tuple | type({}.values())) else (value,):
            if not isinstance(each, Optimizer) or each is optimizer:
                continue
            if name == "optimizer" or not own.isdisjoint(_parameters(each)):
                yield each


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}


def _has_all(inner: Optimizer, outer: Optimizer) -> bool:
    """Whether an optimizer has the very groups of the one around it, or shows them as its own."""
    own = list(map(id, getattr(outer, "param_groups", ())))
    return not own or own == list(map(id, inner.param_groups))
