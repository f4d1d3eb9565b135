"""Tensors inside nested values: the arguments of a forward pass and what it returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

_DEPTH = 16


def tensors(value: Any, path: str = "output") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a nested value, with its path.

    Args:
        value: a tensor, or any nesting of tuples, lists, dicts, named tuples, dataclasses and
            objects with attributes.
        path: the name of the value itself.

    Returns:
        Pairs such as ``("output.logits", tensor)`` or ``("output['aux'][0]", tensor)``.

    Example:
        >>> import torch
        >>> from surgery.graph.structure import tensors
        >>> [path for path, _ in tensors({"out": torch.zeros(1), "aux": [torch.zeros(1)]})]
        ["output['out']", "output['aux'][0]"]
    """
    yield from _tensors(value, path, ())


def _tensors(value: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if id(value) in above or len(above) > _DEPTH:
        return
    for name, item in _members(value):
        yield from _tensors(item, path + name, (*above, id(value)))


def _members(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, str | bytes | int | float | type | torch.dtype | torch.device | nn.Module):
        return []
    if dataclasses.is_dataclass(value) and isinstance(value, Mapping):
        return [(f".{key}", item) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", item) for name, item in zip(value._fields, value, strict=True)]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if callable(value):
        return []
    return [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]


def replace_tensors(value: Any, new: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nested value with every tensor replaced; containers are copied, never changed.

    Args:
        value: as for ``tensors``. Where it contains itself, the inner one stays what it was.
        new: gives the tensor to put in place of one.

    Returns:
        A value of the same type; the value itself where there is no tensor in it.

    Example:
        >>> import torch
        >>> replace_tensors({"size": (2, torch.zeros(3))}, lambda tensor: tensor.shape)
        {'size': (2, torch.Size([3]))}
    """
    return _replaced(value, new, ())


def _replaced(
    value: Any, new: Callable[[torch.Tensor], torch.Tensor], above: tuple[int, ...]
) -> Any:
    if isinstance(value, torch.Tensor):
        return new(value)
    if value is None or isinstance(value, str | int | float) or id(value) in above:
        return value
    above = (*above, id(value))
    if isinstance(value, list | tuple):
        items = [_replaced(item, new, above) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return tuple(items) if type(value) is tuple else type(value)(items)
    if isinstance(value, dict):
        copied = value.copy()
        for key, item in value.items():
            copied[key] = _replaced(item, new, above)
        return copied
    if not any(True for _ in tensors(value)):
        return value
    copied = copy.copy(value)
    for name, item in _attributes(value).items():
        # Not setattr: a frozen dataclass has none.
        object.__setattr__(copied, name, _replaced(item, new, above))
    return copied


def _attributes(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        fields = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in fields if hasattr(value, name)}
    return dict(getattr(value, "__dict__", {}))
