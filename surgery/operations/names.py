"""Class names of models that have no place for them, remembered beside the model.

A model often learns its classes from a checkpoint whose names stand elsewhere. They are kept here
for as long as the model object lives with the layers it had, and for that object only: a copy, a
pickle, a state dict or another process knows nothing of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from surgery import tree

# By identity: two models are two models, also where a class of theirs defines `__eq__`.
_NAMES: WeakIdKeyDictionary = WeakIdKeyDictionary()


@dataclass(frozen=True)
class _Memory:
    """Names, and the parameters that had one entry for each when they were given."""

    names: tuple[str, ...]
    about: Mapping[str, weakref.ref[torch.Tensor]]

    def holds(self, model: nn.Module) -> bool:
        """Whether those parameters are still there: another layer has other classes."""
        now = _about(model, len(self.names))
        return now.keys() == self.about.keys() and all(
            self.about[address]() is tensor for address, tensor in now.items()
        )


def remember(model: nn.Module, names: Sequence[str] | None) -> None:
    """Remember the names of a model's classes while that very object lives.

    Args:
        model: any module; wrappers that are passed through share the memory of what they wrap.
        names: one name for each class, in order, which may repeat; None forgets.

    Example:
        >>> from torch import nn
        >>> from surgery.operations.names import remember, remembered
        >>> model = nn.Linear(4, 2)
        >>> remember(model, ["cat", "dog"])
        >>> remembered(model)
        ('cat', 'dog')
        >>> remember(model, None)
        >>> remembered(model) is None
        True
    """
    inner = tree.unwrap(model)
    if names is None:
        _NAMES.pop(inner, None)  # type: ignore[no-untyped-call]
        return
    about = {a: weakref.ref(tensor) for a, tensor in _about(inner, len(names)).items()}
    _NAMES[inner] = _Memory(tuple(names), about)


def remembered(model: nn.Module) -> tuple[str, ...] | None:
    """The names that ``remember`` was given for this very object, or None.

    Args:
        model: any module; wrappers are passed through.

    Returns:
        One name for each class, in order; None as well where a layer with an entry for each
        class was replaced since by other hands. Whether there are as many as a head has classes
        is for the caller to check.
    """
    inner = tree.unwrap(model)
    found: _Memory | None = _NAMES.get(inner)  # type: ignore[no-untyped-call]
    return found.names if found is not None and found.holds(inner) else None


def _about(model: nn.Module, classes: int) -> dict[str, torch.Tensor]:
    """The parameters with one entry a class, or, where there are none, with several for each."""
    held = {entry.address: entry.tensor for entry in tree.index(model).of_kind("parameter")}
    exact = {a: tensor for a, tensor in held.items() if classes in tensor.shape[:2]}
    if exact:
        return exact
    return {a: t for a, t in held.items() if t.dim() and t.shape[0] % classes == 0}
