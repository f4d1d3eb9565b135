"""Arguments of operators: tensors, and lists and tuples of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among arguments, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def leaves_of(value: Any) -> list[Any]:
    """What an operator returned, in order: tensors, and None where there is none."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves_of(item)]
    return [value]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same arguments, with something else for everything in them.

    Example:
        >>> map_leaves(lambda x: x + 1, ([1, 2], {"a": 3}))
        ([2, 3], {'a': 4})
    """
    if type(value) is tuple or type(value) is list or isinstance(value, torch.Size):
        return type(value)([map_leaves(function, item) for item in value])
    if type(value) is dict:
        return {key: map_leaves(function, item) for key, item in value.items()}
    return function(value)
