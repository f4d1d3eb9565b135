"""Move what comes back to where the model has gone since: another device, another dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError, UndoError
from surgery.graph.skeleton import is_floating
from surgery.operations.journal import Change, Journal, get_entry, set_entry

Placement: TypeAlias = tuple[torch.device, torch.dtype]


def placement(tensor: torch.Tensor) -> Placement:
    """Where a tensor is, and in which precision."""
    return tensor.device, tensor.dtype


def placements(value: object) -> dict[str, Placement]:
    """The placement of a tensor, or of every tensor of a module by name."""
    return {name: placement(tensor) for name, tensor in _tensors(value)}


def witnesses(index: tree.Index, apart: set[int]) -> dict[str, Placement]:
    """One address for each placement among a model's tensors, less those to leave out by ``id``."""
    found: dict[Placement, str] = {}
    for entry in index.of_kind("parameter", "buffer"):
        if id(entry.tensor) not in apart:
            found.setdefault(placement(entry.tensor), entry.address)
    return {address: place for place, address in found.items()}


def _tensors(value: object) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, nn.Module):
        yield from value.named_parameters()
        yield from value.named_buffers()


class Converter:
    """Moves old tensors to where the model is now, in place where torch can.

    Args:
        journal: told of every tensor and module before it is written to.
        root: the model.
        witnesses: untouched tensors by address, and where they were.
        title: the operation, for errors.
    """

    def __init__(
        self, journal: Journal, root: nn.Module, witnesses: Mapping[str, Placement], title: str
    ) -> None:
        self.journal = journal
        self.title = title
        self.alive = tree.index(root).tensors
        self.others = list(_moves(root, witnesses))
        self.made: dict[int, torch.Tensor] = {}

    def converted(self, change: Change, installed: Mapping[str, Placement]) -> Any:
        """What a change goes back to, moved."""
        present = dict(_tensors(change.now))
        own = [
            (was, placement(present[name])) for name, was in installed.items() if name in present
        ]
        moves = [*own, *self.others]
        if all(was == now for was, now in moves):
            return change.before
        for _, tensor in _tensors(change.before):
            target = _target(tensor, moves)
            if target != placement(tensor) and id(tensor) not in self.alive:
                self._convert(tensor, target)
        if isinstance(change.before, torch.Tensor):
            return self.made.get(id(change.before), change.before)
        if isinstance(change.before, nn.Module) and self.made:
            self._exchange(change.before)
        return change.before

    def _convert(self, tensor: torch.Tensor, target: Placement) -> None:
        if tensor.is_meta:
            raise UndoError(
                "what would come back was on meta and has no values, and the model has some now",
                where=self.title,
                expected="a model that is still on meta",
                found=f"a model on {target[0]}",
                fix="outcome.commit(), then surgery.replace_head again",
            )
        if id(tensor) in self.made:
            return
        data = tensor.detach().to(*target)
        gradient = tensor.grad if tensor.is_leaf else None
        moved = None if gradient is None else gradient.detach().to(*target)
        if torch._has_compatible_shallow_copy_type(tensor, data):
            self.journal.remember_values(tensor)
            tensor.data = data
            if gradient is not None and moved is not None:
                gradient.data = moved
            return
        # From a real device to meta: torch itself makes a new parameter then.
        new = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
        new.grad = moved
        new.__dict__.update(tensor.__dict__)
        self.made[id(tensor)] = new

    def _exchange(self, module: nn.Module) -> None:
        """Put the new parameters wherever a module that comes back holds the old ones."""
        self.journal.remember_modules(module)
        for inner in module.modules():
            for container in (vars(inner), *vars(inner).values()):
                if not isinstance(container, dict | list):
                    continue
                keys = range(len(container)) if isinstance(container, list) else list(container)
                for key in keys:
                    new = self.made.get(id(get_entry(container, key)))
                    if new is not None:
                        set_entry(container, key, new)


def _moves(
    root: nn.Module, witnesses: Mapping[str, Placement]
) -> Iterator[tuple[Placement, Placement]]:
    for address, was in witnesses.items():
        try:
            here = tree.get(root, address)
        except AddressError:
            continue
        if isinstance(here, torch.Tensor):
            yield was, placement(here)


def _target(tensor: torch.Tensor, moves: list[tuple[Placement, Placement]]) -> Placement:
    """Where a tensor goes: as one that was with it went, else as others of its device did."""
    here = device, dtype = placement(tensor)
    for was, now in moves:
        if was == here:
            return now
    for was, now in moves:
        if was[0] == device and was != now:
            both = is_floating(was[1]) and is_floating(dtype)
            return now[0], (now[1] if both and was[1] != now[1] else dtype)
    return here
