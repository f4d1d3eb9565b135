"""Operators that give back what they get: an image made as large as it is, padding by nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from surgery.graph.aten import packet
from surgery.graph.graph import Node
from surgery.graph.wording import settings_of

_RESIZES = ("upsample_", "_upsample_", "adaptive_avg_pool", "_adaptive_avg_pool")
_WIDTHS = frozenset({"constant_pad_nd", "roll"})
# By operator, the number with which it changes nothing.
_NEUTRAL: Mapping[str, float] = {"mul": 1, "div": 1, "add": 0, "sub": 0, "pow": 1}
# What they make of one number is that number.
_REDUCED = frozenset({"mean", "sum", "amax", "amin"})


def is_identity(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operation gives back what it gets, number for number.

    Args:
        node: the operation.
        shape: of its first argument.

    Example:
        >>> import torch, surgery
        >>> class Rolled(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.roll(torch.roll(x, 0, 2), 1, 2)
        >>> graph = surgery.record(Rolled(), torch.zeros(1, 2, 3))
        >>> [is_identity(node, graph.spec(node.inputs[0]).shape) for node in graph.operations]
        [True, False]
    """
    name = packet(node.operation).rstrip("_")
    if name in _REDUCED | {"repeat"}:
        return node.outputs[0].shape == shape and passes_on(node, shape)
    if name in _NEUTRAL:
        same = node.outputs[0].shape == shape and len(node.inputs) == 1
        return same and _NEUTRAL[name] in node.arguments[1:2]
    if name.startswith(_RESIZES):
        # A factor that is rounded away in the size still says where numbers are read.
        scales = (v for name, v in settings_of(node).items() if name.startswith("scale"))
        given = (each for v in scales for each in (v if isinstance(v, tuple) else (v,)))
        return node.outputs[0].shape == shape and all(each in (None, 1.0) for each in given)
    if name in _WIDTHS:
        settings = settings_of(node)
        return not any(settings.get("pad", settings.get("shifts", ())) or ())
    return False


def passes_on(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether an operation gives back the numbers that it gets, if in another form.

    Args:
        node: the operation.
        shape: of its first argument.

    Example:
        >>> import torch, surgery
        >>> class Pooled(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.mean((2, 3)).mean(1)
        >>> graph = surgery.record(Pooled(), torch.zeros(1, 2, 1, 1))
        >>> [passes_on(node, graph.spec(node.inputs[0]).shape) for node in graph.operations]
        [True, False]
    """
    name = packet(node.operation).rstrip("_")
    if name in _REDUCED | {"repeat"}:
        # One number of one is that number, and what is repeated once is as it was.
        return math.prod(node.outputs[0].shape) == math.prod(shape) > 0
    return is_identity(node, shape)
