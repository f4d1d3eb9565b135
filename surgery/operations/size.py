"""How many parameters a model has, and will have after steps."""

from __future__ import annotations

import torch
from torch import nn

from surgery import tree
from surgery.operations.plan import Step


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(entry.tensor.numel() for entry in tree.index(model).of_kind("parameter"))


def growth(model: nn.Module, steps: tuple[Step, ...]) -> tuple[int, int]:
    """The number of parameters before and after steps, shared ones counted once.

    Args:
        model: the model before.
        steps: what is going to change.
    """
    held: dict[int, tuple[int, set[str]]] = {}
    for entry in tree.index(model).of_kind("parameter"):
        held[id(entry.tensor)] = (entry.tensor.numel(), set(entry.addresses))
    before = sum(size for size, _ in held.values())
    for step in steps:
        for address in step.addresses:
            if step.kind in ("module", "root", "parameter"):
                _leave(held, address)
        for tensor, address in _installed(step):
            held.setdefault(id(tensor), (tensor.numel(), set()))[1].add(address)
    return before, sum(size for size, addresses in held.values() if addresses)


def _leave(held: dict[int, tuple[int, set[str]]], address: str) -> None:
    for _, addresses in held.values():
        addresses -= {
            place
            for place in addresses
            if not address or place == address or place.startswith(f"{address}.")
        }


def _installed(step: Step) -> list[tuple[torch.Tensor, str]]:
    if step.kind == "parameter":
        return [(step.new, address) for address in step.addresses]
    if step.kind not in ("module", "root"):
        return []
    inner = [
        (entry.tensor, place)
        for entry in tree.index(step.new).of_kind("parameter")
        for place in entry.addresses
    ]
    return [
        (tensor, tree.join(address, place)) for address in step.addresses for tensor, place in inner
    ]
