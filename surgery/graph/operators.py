"""What an operator's schema says: what it writes, what its results alias, whether it makes tensors."""

from __future__ import annotations

from collections.abc import Iterator
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
        composite: made of other operators; ``inference_mode`` shows it whole.
        creates: ``filled`` or ``empty`` where it makes a tensor without reading values.
        has_device: whether it takes a ``device``.
        needs_values: whether it hands a value to Python.
        written: the arguments it writes into, by position or keyword.
        returned_alias: for each result, the argument it is or views, or None.
    """

    composite: bool
    creates: str
    has_device: bool
    needs_values: bool
    written: tuple[int | str, ...]
    returned_alias: tuple[int | str | None, ...]


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
    return Behaviour(
        composite=func.namespace == "aten" and func._can_decompose(),
        creates=_CREATES.get(schema.name, ""),
        has_device=any(argument.name == "device" for argument in schema.arguments),
        needs_values=schema.name in ("aten::_local_scalar_dense", "aten::item"),
        written=tuple(written),
        returned_alias=tuple(returned),
    )


def flat_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors among an operator's arguments, in order, lists flattened."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, torch.Tensor))
    return found


def argument_at(args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str) -> Any:
    """The argument at a position or keyword; None where it was left out."""
    if isinstance(key, str):
        return kwargs.get(key)
    return args[key] if key < len(args) else None


def aliased(
    known: Behaviour, args: tuple[Any, ...], kwargs: dict[str, Any], position: int
) -> torch.Tensor | None:
    """The argument that result number ``position`` is a view of, or is."""
    if not known.returned_alias:
        return None
    # A returned list (``split``) is one return in the schema.
    key = known.returned_alias[min(position, len(known.returned_alias) - 1)]
    value = None if key is None else argument_at(args, kwargs, key)
    if isinstance(value, list | tuple):
        value = value[position] if position < len(value) else None
    return value if isinstance(value, torch.Tensor) else None


def results(value: Any) -> Iterator[torch.Tensor]:
    """The tensors an operator returned, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from results(item)
