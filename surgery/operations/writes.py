"""Turn the steps of a plan into assignments on a model, or on its skeleton."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.operations.carry import carry_writes
from surgery.operations.journal import Write
from surgery.operations.plan import Step

Transform = Callable[[Any], Any]


def makers(
    model: nn.Module,
    steps: tuple[Step, ...],
    transform: Transform | None = None,
    index: tree.Index | None = None,
) -> list[Callable[[], list[Write]]]:
    """For every step, what makes its writes when its turn comes.

    Args:
        model: the unwrapped model, or a skeleton of it.
        steps: what to do. A ``root`` step only prepares the new root.
        transform: applied to what is installed; a skeleton gets stand-ins.
        index: of the model, where it is at hand and the steps move nothing.
    """

    def maker(step: Step) -> Callable[[], list[Write]]:
        return lambda: _writes(model, step, transform)

    if index is not None:
        places = {a: entry.tensor for entry in index.tensors.values() for a in entry.addresses}
        return [_filler(places[step.address], step) for step in steps]

    return [maker(step) for step in steps]


def _filler(tensor: torch.Tensor, step: Step) -> Callable[[], list[Write]]:
    return lambda: [Write(tensor, "...", step.new, "values")]


def _writes(model: nn.Module, step: Step, transform: Transform | None) -> list[Write]:
    if step.kind == "values":
        # A skeleton has no values, and one tensor is behind all addresses.
        write = Write(tree.get(model, step.address), "...", step.new, "values")
        return [write] if transform is None else []
    new = transform(step.new) if transform is not None else step.new
    if step.kind == "attribute":
        return [attribute_write(tree.get_module(model, step.module), step.path, new)]
    if step.kind == "flag":
        return [Write(tree.get(model, step.address), "requires_grad", new)]
    writes: list[Write] = []
    if isinstance(new, nn.Module):
        writes += carry_writes(tree.get_module(model, step.address), new)
    if step.kind != "root":
        writes += [slot_write(model, address, new) for address in step.addresses]
    return writes


def slot_write(model: nn.Module, address: str, value: Any) -> Write:
    """The assignment that puts a module or tensor at an address."""
    owner, name = tree.split(address)
    module = tree.get_module(model, owner)
    if module._buffers.get(name) is not None:
        # setattr would register a Parameter that was kept as a buffer.
        return Write(module._buffers, name, value, "item")
    return Write(module, name, value)


def attribute_write(module: nn.Module, path: str, value: Any) -> Write:
    """The assignment that sets a fact, inside dicts, named tuples and frozen dataclasses too."""
    names = path.split(".")
    chain: list[Any] = [module]
    for name in names[:-1]:
        chain.append(member(chain[-1], name))
    # What cannot be written to is made anew and put where it was; a module always can.
    for owner in reversed(chain[1:]):
        if isinstance(owner, tuple) and hasattr(owner, "_replace"):
            value = owner._replace(**{names.pop(): value})
        elif _is_frozen(owner):
            value = dataclasses.replace(owner, **{names.pop(): value})
        else:
            break
    owner = chain[len(names) - 1]
    return Write(owner, names[-1], value, "item" if isinstance(owner, Mapping) else "attribute")


def member(owner: Any, name: str) -> Any:
    """One member of a configuration: an entry of a dict, else an attribute."""
    return owner[name] if isinstance(owner, Mapping) else getattr(owner, name)


def _is_frozen(owner: Any) -> bool:
    parameters = getattr(type(owner), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)
