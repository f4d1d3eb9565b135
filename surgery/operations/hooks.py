"""Variables that a user's hooks count and collect in, while models are run for a proof.

Hooks are part of what a model computes, so the stand-ins of a proof call them, dozens of times. A
counter would say something else afterwards, and a list of activations would be full of stand-ins.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_CONTAINERS = frozenset({dict, OrderedDict, list, set, defaultdict, Counter})
# What variables hold that are counted and collected in.
_HELD = _CONTAINERS | {type(None), bool, int, float, complex, str, tuple, torch.Tensor}


@contextlib.contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Leave what the hooks of models count and collect in as it was, whatever runs inside.

    Variables of the functions around a hook, of its Python module and of the object whose method
    it is, and what lists, dicts and sets among them hold.

    Args:
        models: they may be called inside, or copies of them that share their hooks.

    Example:
        >>> model, seen = nn.Linear(2, 2), []
        >>> handle = model.register_forward_hook(lambda module, args, output: seen.append(output))
        >>> with undisturbed(model):
        ...     output = model(torch.zeros(1, 2))
        >>> seen
        []
    """
    kept = _Kept()
    for model in models:
        for module in model.modules():
            for table in (module._forward_hooks, module._forward_pre_hooks):
                for hook in table.values():
                    kept.note_hook(hook)
    try:
        yield
    finally:
        kept.restore()


class _Kept:
    """What variables held, and the containers in them."""

    def __init__(self) -> None:
        self.cells: list[tuple[types.CellType, Any]] = []
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.containers: dict[int, tuple[Any, Any]] = {}

    def note_hook(self, hook: Any) -> None:
        """Note what a hook may change besides what it returns."""
        while isinstance(hook, functools.partial):
            hook = hook.func
        if isinstance(hook, types.MethodType):
            self.note_object(hook.__self__)
            hook = hook.__func__
        if isinstance(hook, types.BuiltinMethodType):
            self.note(hook.__self__)
        elif isinstance(hook, types.FunctionType):
            self.note_function(hook)
        else:
            self.note_object(hook)

    def note_function(self, function: types.FunctionType) -> None:
        """Note the variables that a function knows, and its defaults."""
        for cell in function.__closure__ or ():
            # One may be empty still.
            with contextlib.suppress(ValueError):
                if type(cell.cell_contents) in _HELD:
                    self.cells.append((cell, cell.cell_contents))
                    self.note(cell.cell_contents)
        self.note_names(function.__globals__, function.__code__.co_names)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.note(value)

    def note_object(self, owner: Any) -> None:
        """Note the attributes of an object; those of modules are kept anyway."""
        held = getattr(owner, "__dict__", None)
        if isinstance(held, dict) and not isinstance(owner, nn.Module):
            self.note_names(held, tuple(held))
            call = vars(type(owner)).get("__call__")
            if isinstance(call, types.FunctionType):
                self.note_function(call)

    def note_names(self, holder: dict[str, Any], names: tuple[str, ...]) -> None:
        """Note entries of a namespace."""
        for name in names:
            if name in holder and type(holder[name]) in _HELD:
                self.names.append((holder, name, holder[name]))
                self.note(holder[name])

    def note(self, value: Any) -> None:
        """Note what a container holds, and the containers in it."""
        if type(value) not in _CONTAINERS or id(value) in self.containers:
            return
        self.containers[id(value)] = value, value.copy()
        for item in value.values() if isinstance(value, dict) else value:
            self.note(item)

    def restore(self) -> None:
        """Put everything back that changed."""
        for cell, value in self.cells:
            if cell.cell_contents is not value:
                cell.cell_contents = value
        for holder, name, value in self.names:
            if holder.get(name) is not value:
                holder[name] = value
        for container, content in self.containers.values():
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
