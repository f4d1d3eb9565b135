"""Class names of models that have no place for them, remembered beside the model.

A model often learns its classes from a checkpoint whose names stand elsewhere. They are kept here
for as long as the model object lives, and for that object only: a copy, a pickle, a state dict or
another process knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from surgery import tree

# By identity: two models are two models, also where a class of theirs defines `__eq__`.
_NAMES: WeakIdKeyDictionary = WeakIdKeyDictionary()


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
    _NAMES[inner] = tuple(names)


def remembered(model: nn.Module) -> tuple[str, ...] | None:
    """The names that ``remember`` was given for this very object, or None.

    Args:
        model: any module; wrappers are passed through.

    Returns:
        One name for each class, in order. Whether there are as many as the model has classes now
        is for the caller to check: the model may have changed since.
    """
    found: tuple[str, ...] | None = _NAMES.get(tree.unwrap(model))  # type: ignore[no-untyped-call]
    return found


def exchange(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Remember other names, or none where there are none, and say what was remembered before.

    Args:
        model: any module.
        names: the names of its classes now; empty where they have none.

    Returns:
        The names before, empty where there were none.
    """
    before = remembered(model)
    remember(model, names or None)
    return before or ()
