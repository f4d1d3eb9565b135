"""Where in the groups of an optimizer the parameters go that an operation put into a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from surgery import tree
from surgery.optimizers.exchange import Come, Exchange, Gone

_NOWHERE = "what was in its place is in no group"
_ELSEWHERE = "another optimizer has it"
_FROZEN = "it was frozen"
_MISFIT = "this optimizer steps no parameter of its form"

# Whether a group can hold a parameter, where it holds another.
Fits: TypeAlias = "Callable[[int, torch.Tensor, torch.Tensor], bool]"


@dataclass(eq=False)
class Lists:
    """The parameters of every group, and their names where groups have them.

    Attributes:
        tensors: one list for each group.
        names: likewise; empty where the groups have no names.
    """

    tensors: list[list[torch.Tensor]]
    names: list[list[str]]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Lists:
        """What the groups hold now, copied."""
        groups = optimizer.param_groups
        named = all("param_names" in group for group in groups)
        names = [list(group["param_names"]) for group in groups] if named else []
        return cls([list(group["params"]) for group in groups], names)

    def same(self, other: Lists) -> bool:
        """Whether the same parameters are in the same places."""
        ours, theirs = (
            [list(map(id, tensors)) for tensors in each.tensors] for each in (self, other)
        )
        return ours == theirs and self.names == other.names

    def where(self) -> dict[int, int]:
        """The group of every parameter, by ``id``."""
        return {id(tensor): n for n, group in enumerate(self.tensors) for tensor in group}

    def put(self, optimizer: Optimizer) -> None:
        """Let the groups hold this; the lists in them stay the same objects."""
        for number, group in enumerate(optimizer.param_groups):
            group["params"][:] = self.tensors[number]
            if self.names:
                group["param_names"][:] = self.names[number]


@dataclass(eq=False)
class Placing:
    """Lists with the parameters of an operation in place.

    Attributes:
        lists: what the groups are to hold.
        groups: the group of each parameter that came, by ``id``; None where nothing says which.
        reasons: why it is there, where that is not plain.
    """

    lists: Lists
    groups: dict[int, int | None] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def placed(
    now: Lists,
    exchange: Exchange,
    index: tree.Index,
    group: int | None,
    fits: Fits = lambda number, new, old: True,
    taken: Container[int] = (),
) -> Placing:
    """Put what came in the place of what is gone.

    A parameter takes the place of the one that was at its address. One at an address of its own
    goes to the group of a parameter like it (a matrix, or a vector, as groups are told apart by
    weight decay): of what was replaced, else the nearest in the model. Where nothing like it in
    the part that changed was in the optimizer, or another optimizer has it already, it belongs to
    no group. Where nothing was replaced, a group that is given counts before what is near.

    Args:
        now: what the groups hold.
        exchange: what the operation did.
        index: of the model as it is now.
        group: the group for parameters that nothing else says the group of.
        fits: whether a group, by its number, can hold a new parameter as it holds an old one.
        taken: by ``id`` what other optimizers hold.
    """
    where = now.where()
    placing = Placing(now)
    ahead: dict[int, list[Come]] = {}
    behind: dict[int, list[Come]] = {}
    ends: dict[int, list[Come]] = {}
    model = _Held(where, exchange, index)
    held = {id(tensor): tensor for tensors in now.tensors for tensor in tensors}
    naming = _Naming(now, exchange, index)
    for key, come in exchange.come.items():
        if key in where:
            placing.groups[key] = where[key]
            placing.reasons[key] = "it is in there already"
            continue
        slot, reason = (None, _FROZEN) if come.unfrozen else model.slot(come, group)
        if slot is not None and come.before is None and key in taken:
            slot, reason = None, _ELSEWHERE
        elif slot is not None and not fits(where[slot], come.tensor, held[slot]):
            slot, reason = None, _MISFIT
        if slot is not None:
            (ahead if slot in exchange.gone else behind).setdefault(slot, []).append(come)
            placing.groups[key] = where[slot]
            if reason:
                placing.reasons[key] = f"{reason} is there"
        else:
            placing.groups[key] = group
            if reason:
                placing.reasons[key] = reason
            if group is not None:
                ends.setdefault(group, []).append(come)
    placing.lists = _rewritten(now, exchange, ahead, behind, ends, naming)
    return placing


def _rewritten(
    now: Lists,
    exchange: Exchange,
    ahead: Mapping[int, list[Come]],
    behind: Mapping[int, list[Come]],
    ends: Mapping[int, list[Come]],
    naming: _Naming,
) -> Lists:
    made = Lists([], [])
    for number, tensors in enumerate(now.tensors):
        rows: list[tuple[torch.Tensor, str]] = []
        for tensor in tensors:
            key = id(tensor)
            rows += map(naming.row, ahead.get(key, ()))
            if key not in exchange.gone:
                rows.append((tensor, naming.of_held(key)))
            rows += map(naming.row, behind.get(key, ()))
        rows += map(naming.row, ends.get(number, ()))
        made.tensors.append([tensor for tensor, _ in rows])
        if now.names:
            made.names.append([name for _, name in rows])
    return made


class _Naming:
    """How groups spell the names of parameters: those of a wrapped model have something in front.

    A parameter that takes the place of another has its name. Any other has its address, spelled
    as those of the rest are.
    """

    def __init__(self, now: Lists, exchange: Exchange, index: tree.Index) -> None:
        self.moved = exchange.moved
        self.names = {
            id(tensor): name
            for tensors, names in zip(now.tensors, now.names, strict=False)
            for tensor, name in zip(tensors, names, strict=True)
        }
        found = Counter(
            name.removesuffix(address)
            for entry in index.of_kind("parameter")
            for address in entry.addresses
            if f".{(name := self.names.get(id(entry.tensor), ''))}".endswith(f".{address}")
        )
        self.before = max(found, key=found.__getitem__, default="")

    def of_held(self, key: int) -> str:
        """The name of a parameter that stays."""
        name = self.names.get(key, "")
        old, new = self.moved.get(key, ("", ""))
        return self.before + new if old and name == self.before + old else name

    def row(self, come: Come) -> tuple[torch.Tensor, str]:
        """A parameter that comes, with its name."""
        name = self.names.get(id(come.before), self.before + come.address)
        return come.tensor, name


@dataclass(frozen=True, eq=False)
class _Anchor:
    """A parameter in a group: the one that was there, where another took its place."""

    slot: int
    tensor: torch.Tensor
    address: str
    order: int


class _Held:
    """The parameters that an optimizer holds of a model, and which of them new ones go with."""

    def __init__(self, where: Mapping[int, int], exchange: Exchange, index: tree.Index) -> None:
        self.where = where
        self.exchange = exchange
        self.entries = list(index.of_kind("parameter"))
        self.order = {id(entry.tensor): place for place, entry in enumerate(self.entries)}
        self.anchors = [
            _Anchor(slot, entry.tensor, entry.address, place)
            for place, entry in enumerate(self.entries)
            if (slot := self._slot_of(entry)) in where
        ]

    def _slot_of(self, entry: tree.Entry) -> int:
        come = self.exchange.come.get(id(entry.tensor))
        return id(entry.tensor) if come is None or come.before is None else id(come.before)

    def slot(self, come: Come, group: int | None = None) -> tuple[int | None, str]:
        """Whose group a parameter takes, by ``id``; and the address of that one, or why nobody's.

        Args:
            come: a parameter that the optimizer does not hold.
            group: where a person put it, which counts before what is near.
        """
        if come.before is not None:
            slot = id(come.before)
            return (slot, "") if slot in self.where else (None, _NOWHERE)
        there = [each for each in self.exchange.gone.values() if each.part == come.part]
        place = self.order.get(id(come.tensor), 0)
        found = [
            _Anchor(id(each.tensor), each.tensor, each.address, place)
            for each in there
            if id(each.tensor) in self.where
        ]
        like = [each for each in there if _alike(come, each)] or there
        if like and not any(id(each.tensor) in self.where for each in like):
            return None, _NOWHERE
        if not found and group is not None:
            return None, ""
        if not found and not self._trained_around(come):
            return None, "nothing around it is in a group"
        if not any(_alike(come, anchor) for anchor in found):
            # Nothing of its kind was replaced: the nearest of its kind is in the right group.
            found += self.anchors
        best = max(found, key=lambda anchor: self._likeness(come, anchor))
        return best.slot, best.address

    def _likeness(self, come: Come, anchor: _Anchor) -> tuple[Any, ...]:
        names = tree.split(come.address)[1], tree.split(anchor.address)[1]
        distance = abs(self.order.get(id(come.tensor), anchor.order) - anchor.order)
        return _alike(come, anchor), -distance, names[0] == names[1]

    def _trained_around(self, come: Come) -> bool:
        """Whether the smallest module around it that has other parameters trains any of them."""
        around, outside = come.place, True
        while outside:
            around = tree.split(around)[0]
            outside = around != ""
            prefix = f"{around}." if around else ""
            inside = [
                entry
                for entry in self.entries
                if entry.tensor is not come.tensor
                and any(address.startswith(prefix) for address in entry.addresses)
            ]
            if inside:
                return any(self._slot_of(entry) in self.where for entry in inside)
        return False


def _alike(come: Come, anchor: _Anchor | Gone) -> bool:
    """Both are matrices, or both vectors, as groups with and without weight decay have them."""
    return (come.tensor.dim() > 1) is (anchor.tensor.dim() > 1)
