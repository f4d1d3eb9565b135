"""Facts that must agree with a head's number of classes: attributes, configurations, names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.facts import Fact, members
from surgery.heads import Head
from surgery.operations.follow import PerClass
from surgery.operations.keep import unnamed
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
                follows = _resized(value, item.packing.entries(old), item.packing.entries(new))
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

    A fact follows the heads inside the module it stands on, or, where it stands on a loss or a
    metric, all heads. Where those get different numbers, or one of them keeps its own, it says
    nothing of one head and stays.
    """
    labels: dict[int, tuple[str, ...]] = {}
    for fact in facts:
        new, _ = _decided(model, fact, heads, everything)
        same = new == fact.classes and (fact.kind == "count" or classes is None)
        if new is not None and not same:
            names = labels.setdefault(new, tuple(classes or unnamed(new)))
            yield _fact_step(model, fact, new, names)


def known_names(model: nn.Module, facts: Sequence[Fact], head: Head) -> tuple[str, ...] | None:
    """The names of a head's classes, as the model lists or maps them; None where it does not."""
    for fact in facts:
        if fact.classes != head.num_classes or not _is_inside(head, fact.module):
            continue
        owner, name = _owner(model, fact)
        value = members(owner).get(name)
        if fact.kind == "names" and value is not None:
            return tuple(value)
        if fact.kind == "mapping" and isinstance(value, Mapping):
            turned = value if name in ("id2label", "idx_to_class") else _turned(value)
            by_number = {int(place): str(label) for place, label in turned.items()}
            if set(by_number) == set(range(head.num_classes)):
                return tuple(by_number[place] for place in range(head.num_classes))
    return None


def _turned(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    return {place: label for label, place in mapping.items()}


def staying_facts(
    model: nn.Module,
    facts: Sequence[Fact],
    heads: Sequence[tuple[Head, int]],
    everything: Sequence[Head],
) -> Iterator[str]:
    """The facts that give a replaced head's old number and stay, each with the reason."""
    for fact in facts:
        new, reason = _decided(model, fact, heads, everything)
        if new is None and reason:
            yield f"{fact.address} says {fact.classes} and {reason}"
        elif new is None and (odd := _one_less(fact, heads)) is not None:
            head, size = odd
            yield (
                f"{fact.address} says {fact.classes} and stays, where {head.address!r} made "
                f"{head.num_classes}: if one of them means no object, it should say {size - 1}"
            )


def _one_less(fact: Fact, heads: Sequence[tuple[Head, int]]) -> tuple[Head, int] | None:
    """The head that makes one class more than a fact says, as for "no object"; or None."""
    for head, size in heads:
        odd = fact.kind == "count" and fact.classes == head.num_classes - 1
        if odd and size != head.num_classes and _is_inside(head, fact.module):
            return head, size
    return None


def _decided(
    model: nn.Module,
    fact: Fact,
    heads: Sequence[tuple[Head, int]],
    everything: Sequence[Head],
) -> tuple[int | None, str]:
    """The number a fact is to give, or None and the reason, empty if it is about something else."""
    alike = [head for head in everything if fact.classes == head.num_classes]
    concerned = [head for head in alike if _is_inside(head, fact.module)]
    if not concerned and not _is_bystander(model, fact.module):
        return None, ""
    numbers = {_new_size(head, heads) for head in concerned or alike}
    if not numbers or numbers == {None}:
        return None, ""
    if len(numbers) > 1:
        names = ", ".join(head.address or "(the model itself)" for head in concerned or alike)
        return None, f"stays: it may be about any of {names}, which are no longer alike"
    obstacle = _obstacle(model, fact)
    if obstacle:
        return None, obstacle
    return numbers.pop(), ""


def _is_inside(head: Head, module: str) -> bool:
    return any(module in ("", a) or a.startswith(f"{module}.") for a in head.addresses)


def _is_bystander(model: nn.Module, address: str) -> bool:
    """Whether a module holds no tensor and no layer: a loss or a metric, which is about heads."""
    module = tree.get_module(model, address)
    held = (*module.__dict__.values(), *module._buffers.values(), *module._modules.values())
    return not module._parameters and not any(
        isinstance(value, torch.Tensor | nn.Module) for value in held
    )


def _new_size(head: Head, heads: Sequence[tuple[Head, int]]) -> int | None:
    return next((size for chosen, size in heads if chosen.address == head.address), None)


def _owner(model: nn.Module, fact: Fact) -> tuple[Any, str]:
    *parents, name = fact.path.split(".")
    owner: Any = tree.get_module(model, fact.module)
    for parent in parents:
        owner = member(owner, parent)
    return owner, name


def _obstacle(model: nn.Module, fact: Fact) -> str:
    """Why a fact cannot be set, or empty."""
    module = tree.get_module(model, fact.module)
    first, _, rest = fact.path.partition(".")
    owner, name = _owner(model, fact)
    if isinstance(owner, type) or (rest and first not in module.__dict__):
        return "stays: it belongs to a class, which other models may share"
    declared = inspect.getattr_static(type(owner), name, None)
    if isinstance(declared, property) and declared.fset is None:
        return "cannot be set: it follows only if the model computes it from the head"
    if isinstance(_value(owner, name), torch.Tensor):
        return "stays: it is a tensor, which the model may compute with"
    return ""


def _value(owner: Any, name: str) -> Any:
    held = members(owner)
    return held[name] if name in held else getattr(owner, name)


def _fact_step(model: nn.Module, fact: Fact, new: int, names: tuple[str, ...]) -> Step:
    owner, name = _owner(model, fact)
    value = _value(owner, name)
    if fact.kind == "count":
        return _attribute(fact.module, fact.path, value, _number(value, new))
    if fact.kind == "names":
        listed = tuple(names) if isinstance(value, tuple) else list(names)
        return _attribute(fact.module, fact.path, value, listed)
    return _attribute(fact.module, fact.path, value, _mapping(name, value, names))


def _number(old: Any, new: int) -> Any:
    """A number of the type that the old one has, where that type has it."""
    if type(old) is int:
        return new
    try:
        number = type(old)(new)
    except (TypeError, ValueError, OverflowError):
        return new
    return number if number == new else new


def _mapping(name: str, old: Mapping[Any, Any], names: tuple[str, ...]) -> dict[Any, Any]:
    """Numbers to names or names to numbers, each number a text where it was one."""
    to_names = name in ("id2label", "idx_to_class")
    numbers = list(old) if to_names else list(old.values())
    written = any(isinstance(number, str) for number in numbers)
    pairs = [(str(place) if written else place, label) for place, label in enumerate(names)]
    return dict(pairs) if to_names else {label: place for place, label in pairs}


def _attribute(module: str, path: str, before: Any, after: Any) -> Step:
    return Step(
        "attribute", (tree.join(module, path),), _brief(before), _brief(after), after, module
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
