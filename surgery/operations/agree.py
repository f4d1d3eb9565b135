"""Facts that must agree with a head's number of classes: attributes, configurations, names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from surgery import tree
from surgery.facts import Fact, members
from surgery.heads import Head
from surgery.operations.follow import PerClass
from surgery.operations.plan import Step
from surgery.operations.writes import member

# What torch's layers, and most others, call the size of the axis that follows.
_SIZES = (
    "out_features",
    "out_channels",
    "num_features",
    "num_channels",
    "num_parameters",
    "normalized_shape",
    "num_embeddings",
    "out_dim",
    "output_dim",
    "out_size",
    "output_size",
)


def layer_steps(model: nn.Module, items: Iterable[PerClass], old: int, new: int) -> Iterator[Step]:
    """The attributes of the layers that own per-class tensors: ``out_features`` and its like."""
    seen: set[int] = set()
    for item in items:
        for address in item.addresses:
            owner = tree.split(address)[0].partition("parametrizations")[0].rstrip(".")
            module = tree.get_module(model, owner)
            if id(module) in seen:
                continue
            seen.add(id(module))
            for name in _SIZES:
                value = module.__dict__.get(name)
                follows = _resized(value, old, new)
                if follows is not None:
                    yield _attribute(owner, name, value, follows)


def _resized(value: Any, old: int, new: int) -> Any:
    if type(value) is int and value == old:
        return new
    if isinstance(value, tuple) and value == (old,):
        return (new,)
    return None


def fact_steps(
    model: nn.Module,
    facts: Sequence[Fact],
    heads: Sequence[tuple[Head, int]],
    everything: Sequence[Head],
    classes: Sequence[str] | None,
) -> Iterator[Step]:
    """The facts that give a replaced head's number of classes, with the new number or names.

    A fact follows the heads inside the module it stands on; where those get different numbers,
    or one of them keeps its own, it says nothing of one head and stays.
    """
    labels: dict[int, tuple[str, ...]] = {}
    for fact in facts:
        concerned = [h for h in everything if _about(fact, h)]
        numbers = {_new_size(head, heads) for head in concerned}
        if len(numbers) != 1:
            continue
        new = numbers.pop()
        if new is None:
            continue
        names = labels.setdefault(new, tuple(classes or (f"LABEL_{i}" for i in range(new))))
        step = _fact_step(model, fact, new, names)
        if step is not None:
            yield step


def _about(fact: Fact, head: Head) -> bool:
    inside = any(
        fact.module in ("", address) or address.startswith(f"{fact.module}.")
        for address in head.addresses
    )
    return inside and fact.classes == head.num_classes


def _new_size(head: Head, heads: Sequence[tuple[Head, int]]) -> int | None:
    return next((size for chosen, size in heads if chosen.address == head.address), None)


def _fact_step(model: nn.Module, fact: Fact, new: int, names: tuple[str, ...]) -> Step | None:
    *parents, name = fact.path.split(".")
    owner: Any = tree.get_module(model, fact.module)
    for parent in parents:
        owner = member(owner, parent)
    value = members(owner)[name] if name in members(owner) else getattr(owner, name)
    declared = inspect.getattr_static(type(owner), name, None)
    if isinstance(declared, property) and declared.fset is None:
        return None
    if fact.kind == "count":
        return _attribute(fact.module, fact.path, value, new)
    if fact.kind == "names":
        return _attribute(fact.module, fact.path, value, type(value)(names))
    by_number = all(isinstance(key, int) for key in value)
    mapping: dict[Any, Any] = (
        dict(enumerate(names)) if by_number else {label: i for i, label in enumerate(names)}
    )
    return _attribute(fact.module, fact.path, value, mapping)


def _attribute(module: str, path: str, before: Any, after: Any) -> Step:
    return Step(
        "attribute", (tree.join(module, path),), _brief(before), _brief(after), after, module
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
