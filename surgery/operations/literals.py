"""Plain values as JSON and back, each of exactly the type that it had.

What JSON has no form for is an object with one key that says what it is: ``{"tuple": [1, 2]}``.
Nothing here imports, calls or makes anything but such values.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from surgery.errors import CorruptFileError
from surgery.weights.brief import brief

_DEEPEST = 32
_LONGEST = 100_000
_LARGEST = 2**63

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
# What layers keep as their activation. Each is a function of tensors and nothing else.
_FUNCTIONS = {
    name: getattr(functional, name)
    for name in ("relu", "gelu", "silu", "elu", "selu", "leaky_relu", "mish", "hardswish")
} | {f"torch.{name}": getattr(torch, name) for name in ("relu", "tanh", "sigmoid")}


class Opaque(Exception):  # noqa: N818
    """A value that no JSON stands for."""


def encode(value: Any) -> Any:
    """What stands for a plain value in JSON.

    Args:
        value: None, bool, int, float, str, dtype, ``torch.Size``, an activation of torch, or
            tuples, lists, sets and dicts of them: these very types, no subclasses.

    Raises:
        Opaque: it is something else, nested too deep, too long, or contains itself.

    Example:
        >>> encode({"stride": (2, 2), 0: float("inf")})
        {'dict': [['stride', {'tuple': [2, 2]}], [0, {'float': 'inf'}]]}
    """
    return _encode(value, _DEEPEST, [_LONGEST])


def _encode(value: Any, deep: int, left: list[int]) -> Any:
    left[0] -= 1
    if deep < 0 or left[0] < 0:
        raise Opaque
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int and abs(value) < _LARGEST:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}

    def inner(items: Any) -> list[Any]:
        return [_encode(item, deep - 1, left) for item in items]

    if kind is list:
        return inner(value)
    if kind in (tuple, torch.Size):
        return {"tuple" if kind is tuple else "size": inner(value)}
    if kind in (set, frozenset):
        return {kind.__name__: sorted(inner(value), key=repr)}
    if kind in (dict, OrderedDict):
        pairs = [[_encode(k, deep - 1, left), _encode(v, deep - 1, left)] for k, v in value.items()]
        return {"dict" if kind is dict else "ordered": pairs}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    known = next((name for name, each in _FUNCTIONS.items() if each is value), None)
    if known is None:
        raise Opaque
    return {"function": known}


def decode(form: Any, where: str) -> Any:
    """The value that JSON stands for.

    Args:
        form: what ``json.loads`` gave; from a file that nobody has checked.
        where: for errors.

    Raises:
        CorruptFileError: it stands for nothing.

    Example:
        >>> decode({"dict": [["stride", {"tuple": [2, 2]}]]}, "here")
        {'stride': (2, 2)}
    """
    try:
        return _decode(form, _DEEPEST)
    except (Opaque, TypeError, ValueError, KeyError) as error:
        raise CorruptFileError(
            "a value in the record stands for nothing",
            where=where,
            expected="a plain value",
            found=brief(form),
            fix="surgery.save(model, path) writes a valid one",
        ) from error


def _decode(form: Any, deep: int) -> Any:
    if deep < 0:
        raise Opaque
    if form is None or isinstance(form, bool | int | float | str):
        return form
    if isinstance(form, list):
        return [_decode(item, deep - 1) for item in form]
    if not isinstance(form, dict) or len(form) != 1:
        raise Opaque
    ((kind, content),) = form.items()
    if kind in _TABLES:
        return _TABLES[kind][content]
    if kind not in _MAKERS or not isinstance(content, list):
        raise Opaque
    if kind in ("dict", "ordered"):
        content = [tuple(_decode(item, deep - 1) for item in pair) for pair in content]
    else:
        content = [_decode(item, deep - 1) for item in content]
    return _MAKERS[kind](content)


_TABLES: dict[str, dict[str, Any]] = {
    "float": _FLOATS,
    "dtype": _DTYPES,
    "function": _FUNCTIONS,
}
_MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "size": torch.Size,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "ordered": OrderedDict,
}
