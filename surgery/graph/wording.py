"""Operators in the words in which two of them are compared: a name, and the settings."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any

from surgery.graph.aten import operator, packet
from surgery.graph.graph import Node, Ref

# Arguments that change no number that comes out in eval mode.
_IDLE = frozenset(
    {
        *("padding_idx", "scale_grad_by_freq", "sparse", "log2"),
        *("momentum", "training", "train", "cudnn_enabled", "cudnn_enable", "benchmark"),
        *("deterministic", "inplace", "dtype", "layout", "device", "pin_memory", "half_to_float"),
        *("memory_format", "weight_decay", "output_padding", "N", "C", "HxW", "normalized_shape"),
    }
)
# Arguments that name axes of the input, and operators to which their order says nothing.
_AXES = frozenset({"dim", "dims"})
_SUMMED = frozenset(
    {
        *("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp"),
        "linalg_vector_norm",
    }
)
# What numbers may differ by and still be one: how a square root is rounded.
_ROUNDING = 1e-12


def name_of(node: Node) -> str:
    """What an operator is called, without what only says how it is carried out.

    Example:
        >>> import torch, surgery
        >>> graph = surgery.record(torch.nn.LayerNorm(4), torch.zeros(1, 4))
        >>> [name_of(node) for node in graph.operations]
        ['layer_norm']
    """
    name = packet(node.operation).strip("_")
    return name.removeprefix("native_").removesuffix("_legit_no_training")


def written(node: Node) -> str:
    """An operation with its settings, for people."""
    told = ", ".join(f"{n}={value}" for n, value in settings_of(node).items() if value is not None)
    return f"{name_of(node)}({told})"


def settings_of(node: Node) -> dict[str, Any]:
    """The arguments of an operation that are no tensors, by name, defaults filled in."""
    given = dict(node.keywords)
    settings = {}
    for place, (name, default) in enumerate(_arguments(node.operation)):
        value = node.arguments[place] if place < len(node.arguments) else given.get(name, default)
        if name in _IDLE or isinstance(value, Ref) or value == "Tensor":
            continue
        if isinstance(value, tuple | list):
            if any(isinstance(item, Ref) for item in value):
                continue
            value = tuple(value)
        settings[name] = value
    for name in _AXES & settings.keys():
        settings[name] = _counted(node, settings[name], keeps=settings.get("keepdim") is not False)
    return settings


def _counted(node: Node, axes: Any, *, keeps: bool) -> Any:
    """Axes counted from the first, those of a sum in ascending order; one alone as a number."""
    several = isinstance(axes, tuple)
    given = axes if several else (axes,)
    if not all(isinstance(each, int) for each in given) or not node.outputs:
        return axes
    rank = len(node.outputs[0].shape) + (0 if keeps else len(given))
    found = [each + rank if each < 0 else each for each in given]
    return tuple(sorted(found) if name_of(node) in _SUMMED else found) if several else found[0]


@cache
def _arguments(operation: str) -> tuple[tuple[str, Any], ...]:
    """The arguments of an operator, and their defaults."""
    schema = getattr(operator(operation), "_schema", None)
    if schema is None:
        return ()
    return tuple((argument.name, argument.default_value) for argument in schema.arguments)


def plain(value: Any) -> Any:
    """A setting with one number for all axes, where they have the same."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def alike(one: Any, other: Any) -> bool:
    """Whether two settings are one, numbers within rounding.

    Example:
        >>> alike(0.1 + 0.2, 0.3), alike((1, 1), 1), alike(1e-5, 1e-6)
        (True, True, False)
    """
    one, other = plain(one), plain(other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_ROUNDING)
    return bool(one == other)


def gist(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The names of operations, one that follows its like left out: two means in a row are one."""
    found: list[str] = []
    for node in nodes:
        name = name_of(node)
        if not found or found[-1] != name:
            found.append(name)
    return tuple(found)


def wording(nodes: Iterable[Node], digits: int = 11) -> Hashable:
    """The names and settings of operations, equal for those that compute the same.

    Args:
        nodes: the operations.
        digits: how many of a number say something.
    """

    def rounded(value: Any) -> str:
        return f"{value:.{digits}g}" if isinstance(value, float) else repr(value)

    return tuple(
        (name_of(node), tuple((name, rounded(plain(v))) for name, v in settings_of(node).items()))
        for node in nodes
    )
