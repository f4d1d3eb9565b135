"""What an operator's schema says: what it writes, and what its results alias."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

_CREATES = {
    f"aten::{name}": "empty" if "empty" in name else "filled"
    for name in (
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty",
        "new_empty",
        "empty_like",
        "empty_strided",
    )
}


@dataclass(frozen=True)
class Behaviour:
    """What an operator's schema says of it, looked up once per operator.

    Attributes:
        name: the full name, ``aten.addmm.default``.
        composite: made of other operators; ``inference_mode`` shows it whole.
        creates: ``filled`` or ``empty`` where it makes a tensor without reading values.
        has_device: whether it takes a ``device``.
        needs_values: whether it hands a value to Python.
        written: the arguments it writes into, by position or keyword.
        returned_alias: for each result, the argument it is or views, or None.
        returns_new: all its results are new tensors, and what they look like follows from what
            its arguments look like.
    """

    name: str
    composite: bool
    creates: str
    has_device: bool
    needs_values: bool
    written: tuple[int | str, ...]
    returned_alias: tuple[int | str | None, ...]
    returns_new: bool


@dataclass(slots=True, eq=False)
class Call:
    """One operator about to run, or that ran.

    Attributes:
        func: the operator.
        known: what its schema says.
        args: its positional arguments.
        kwargs: its keyword arguments.
        given: the tensors among them, in order.
        key: what its results' shapes depend on, where that was worked out.
    """

    func: torch._ops.OpOverload
    known: Behaviour
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[torch.Tensor]
    key: Hashable = None

    def written(self) -> list[torch.Tensor]:
        """The tensors it writes into."""
        keys = self.known.written
        return flat_tensors([argument_at(self.args, self.kwargs, key) for key in keys])

    def aliased(self, position: int) -> torch.Tensor | None:
        """The argument that result number ``position`` is a view of, or is."""
        alias = self.known.returned_alias
        if not alias:
            return None
        # A returned list (``split``) is one return in the schema.
        key = alias[min(position, len(alias) - 1)]
        value = None if key is None else argument_at(self.args, self.kwargs, key)
        if isinstance(value, list | tuple):
            value = value[position] if position < len(value) else None
        return value if isinstance(value, torch.Tensor) else None


@cache
def behaviour(func: torch._ops.OpOverload) -> Behaviour:
    """Read an operator's schema: what it writes, what its results alias."""
    schema = func._schema
    keys: list[int | str] = []
    sets: dict[str, int | str] = {}
    written: list[int | str] = []
    for position, argument in enumerate(schema.arguments):
        key: int | str = argument.name if argument.kwarg_only else position
        keys.append(key)
        if argument.alias_info is not None:
            for name in argument.alias_info.before_set:
                sets[name] = key
            if argument.alias_info.is_write:
                written.append(key)
    returned = []
    for result in schema.returns:
        names = result.alias_info.before_set if result.alias_info is not None else ()
        returned.append(next((sets[name] for name in sorted(names) if name in sets), None))
    has_device = any(argument.name == "device" for argument in schema.arguments)
    needs_values = schema.name in ("aten::_local_scalar_dense", "aten::item")
    return Behaviour(
        name=str(func),
        composite=func.namespace == "aten" and func._can_decompose(),
        creates=_CREATES.get(schema.name, ""),
        has_device=has_device,
        needs_values=needs_values,
        written=tuple(written),
        returned_alias=tuple(returned),
        returns_new=func.namespace == "aten"
        and not any(key is not None for key in returned)
        and not (has_device or needs_values),
    )


def flat_tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among an operator's arguments, in order, lists flattened."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend([item for item in value if isinstance(item, torch.Tensor)])
    return found


def argument_at(args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> Any:
    """The argument at a position or keyword; None where it was left out."""
    if isinstance(key, str):
        return kwargs.get(key)
    return args[key] if key < len(args) else None


def results(value: Any) -> list[torch.Tensor]:
    """The tensors an operator returned, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in results(item)]
    return []
