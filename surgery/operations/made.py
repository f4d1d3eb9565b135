"""Which operations made a model what it is, remembered beside it for as long as it lives.

The history of `undo` forgets what can no longer be undone; this does not. A copy or an unpickled
model knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from surgery import tree
from surgery.operations.history import Entry
from surgery.operations.plan import Plan

_MADE: WeakIdKeyDictionary = WeakIdKeyDictionary()


@dataclass(frozen=True)
class Made:
    """One operation that a model owes something to.

    Attributes:
        title: the operation, for people.
        call: the verb and its arguments, where they are plain.
        touched: what it put somewhere else: addresses of modules, parameters and buffers, from
            the model it was called on.
        serial: its place in the order of all operations.
    """

    title: str
    call: Mapping[str, Any] | None = None
    touched: tuple[str, ...] = field(default=(), compare=False)
    serial: int = field(default=0, compare=False)


def remembered(root: nn.Module) -> list[Made]:
    """The operations that were called on this very object: the list itself."""
    inner = tree.unwrap(root)
    found: list[Made] | None = _MADE.get(inner)  # type: ignore[no-untyped-call]
    if found is None:
        found = _MADE[inner] = []
    return found


def note(before: nn.Module, after: nn.Module, plan: Plan, entry: Entry | None) -> None:
    """Remember an operation that was carried out.

    Args:
        before: the model it was called on.
        after: the same, or the model that took its place, which owes something to all of them.
        plan: what was done.
        entry: its place in the history.
    """
    kinds = ("module", "root", "parameter", "buffer", "attribute")
    touched = (a for step in plan.steps if step.kind in kinds for a in step.addresses)
    made = Made(plan.title, plan.call, tuple(touched), entry.serial if entry is not None else 0)
    held = remembered(after)
    if after is not before:
        held += remembered(before)
    held.append(made)


def forget(model: nn.Module, entry: Entry) -> None:
    """Forget an operation that was undone."""
    held = remembered(model)
    held[:] = [made for made in held if made.serial != entry.serial]


def operations_on(model: nn.Module) -> tuple[Made, ...]:
    """The operations called on a model or on a part of it, in order, addressed from the model.

    Example:
        >>> import surgery
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> outcome = surgery.freeze(model[0])
        >>> [made.title for made in operations_on(model)]
        ["freeze('*')"]
        >>> model = outcome.undo()
        >>> operations_on(model)
        ()
    """
    found: dict[int, Made] = {}
    for address, module in tree.walk(model):
        held: list[Made] = _MADE.get(module, [])  # type: ignore[no-untyped-call]
        for made in held:
            touched = tuple(tree.join(address, each) if each else address for each in made.touched)
            found.setdefault(id(made), Made(made.title, made.call, touched, made.serial))
    return tuple(sorted(found.values(), key=lambda made: made.serial))


def retitle(model: nn.Module, old: str, new: str) -> None:
    """Say otherwise what the last operation on a model is about: a file by another path to it.

    Args:
        model: any module.
        old: what its title says.
        new: what it is to say.
    """
    held = remembered(model)
    if held:
        held[-1] = replace(held[-1], title=held[-1].title.replace(old, new))
