"""Settings of the recipient's layers that are to become the donor's: eps, stride, approximate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from surgery import tree
from surgery.graph.distinctions import Distinction
from surgery.operations.plan import Step
from surgery.operations.tables import TABLE

# What layers call a setting where they do not call it that: a part of the name.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "eps": ("eps",),
    "num_heads": ("heads",),
    "head_dim": ("head_dim", "head_size"),
    "group": ("num_groups",),
}


def setting_steps(model: nn.Module, found: Iterable[Distinction]) -> tuple[list[Step], list[str]]:
    """The steps that give layers the donor's settings.

    Args:
        model: the recipient.
        found: in what operations differ.

    Returns:
        The steps, and sentences on what is no attribute of a layer and stays.
    """
    steps: dict[tuple[str, str], Step] = {}
    stay: dict[str, None] = {}
    for each in found:
        if each.operation == TABLE:
            stay[str(each)] = None
            continue
        module = tree.get_module(model, each.recipient)
        name = _attribute(module, each)
        if name is None:
            stay[str(each)] = None
            continue
        old = vars(module)[name]
        new = _like(old, each.theirs)
        step = Step(
            "attribute",
            (tree.join(each.recipient, name),),
            repr(old),
            repr(new),
            new,
            each.recipient,
        )
        known = steps.setdefault((each.recipient, name), step)
        if known.after != step.after:
            stay[f"{each}, and {known.after} in another place"] = None
    return list(steps.values()), list(stay)


def _attribute(module: nn.Module, each: Distinction) -> str | None:
    """The attribute of a layer that an operation took a setting from, or None."""
    held = vars(module)
    if each.name in held and _equal(held[each.name], each.ours):
        return each.name
    for part in _PARTS.get(each.name, ()):
        alike = [name for name, v in held.items() if part in name and _equal(v, each.ours)]
        if len(alike) == 1:
            return alike[0]
    return None


def _equal(held: Any, used: Any) -> bool:
    return bool(_flat(held) == _flat(used))


def _flat(value: Any) -> Any:
    if isinstance(value, tuple | list) and value and all(item == value[0] for item in value):
        return value[0]
    return tuple(value) if isinstance(value, list) else value


def _like(old: Any, new: Any) -> Any:
    """A setting in the form in which a layer keeps it."""
    if isinstance(old, tuple):
        return tuple(new) if isinstance(new, tuple) else (new,) * len(old)
    if isinstance(old, list):
        return list(new) if isinstance(new, tuple) else [new] * len(old)
    if isinstance(new, tuple) and len(set(new)) == 1:
        return new[0]
    return new
