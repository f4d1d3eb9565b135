"""Put the attributes of a model back after code that may have reached it past its skeleton.

A forward that finds the model through a global variable runs the modules themselves. Their tensors
are redirected one by one; what it hangs on the modules is taken off again here.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

import torch
from torch import nn

_CONTAINERS = frozenset({dict, OrderedDict, list, set})


@contextlib.contextmanager
def kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave the attributes of modules, and what containers among them hold, as they were.

    Args:
        modules: the modules themselves; of their tensors, ``requires_grad`` is kept.

    Example:
        >>> import torch
        >>> from surgery.graph.kept import kept
        >>> model = torch.nn.Linear(2, 2)
        >>> model.seen = []
        >>> with kept([model]):
        ...     model.seen.append(1)
        ...     model.calls = 1
        >>> model.seen, hasattr(model, "calls")
        ([], False)
    """
    before: dict[int, tuple[Any, Any]] = {}
    # Hook tables mostly: many, and quick to check.
    empty: list[Any] = []
    flags: list[tuple[torch.Tensor, bool]] = []
    for module in modules:
        _note(module.__dict__, before, empty)
        flags += [(p, p.requires_grad) for p in module._parameters.values() if p is not None]
    try:
        yield
    finally:
        for container in filter(None, empty):
            container.clear()
        for container, content in before.values():
            _restore(container, content)
        for parameter, flag in flags:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)


def _note(container: Any, before: dict[int, tuple[Any, Any]], empty: list[Any]) -> None:
    if id(container) in before:
        return
    before[id(container)] = (container, container.copy())
    items = container.values() if isinstance(container, dict) else container
    for item in items:
        if type(item) in _CONTAINERS:
            if item:
                _note(item, before, empty)
            else:
                empty.append(item)


def _restore(container: Any, content: Any) -> None:
    # Nothing is written where nothing changed: others may be running the model.
    if len(container) == len(content) and all(map(is_, container, content)):
        if not isinstance(container, dict):
            return
        if all(map(is_, container.values(), content.values())):
            return
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
