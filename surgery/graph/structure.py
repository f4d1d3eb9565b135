"""Tensors inside nested values: the arguments of a forward pass and what it returns."""

from __future__ import annotations

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
    """The same nested value with every tensor replaced; containers are copied, never changed."""
    if isinstance(value, torch.Tensor):
        return new(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replace_tensors(item, new) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(replace_tensors(item, new) for item in value)
    if isinstance(value, dict):
        copied = value.copy()
        for key, item in value.items():
            copied[key] = replace_tensors(item, new)
        return copied
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: replace_tensors(getattr(value, f.name), new)
            for f in dataclasses.fields(value)
            if f.init
        }
        return dataclasses.replace(value, **fields)
    if any(True for _ in tensors(value)):
        return _replace_attributes(value, new)
    return value


def _replace_attributes(value: Any, new: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    import copy

    copied = copy.copy(value)
    for name, item in getattr(value, "__dict__", {}).items():
        copied.__dict__[name] = replace_tensors(item, new)
    return copied
