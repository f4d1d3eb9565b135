"""Bounds that numbers are kept within, whatever the operation is called that does it.

A rectifier, one that ends at six, a hard sigmoid: as long as no number reaches a bound, one with a
bound and one without compute the same, and no output tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from surgery.graph.graph import Node
from surgery.graph.regions import Region
from surgery.graph.skeleton import is_floating
from surgery.graph.wording import name_of, settings_of

_HARD = {"min": 0, "max": 6}
# By operator, the bounds that it has with such settings.
_READ: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "relu": lambda given: {"min": 0},
    "hardtanh": lambda given: {"min": given["min_val"], "max": given["max_val"]},
    "clamp": lambda given: {"min": given.get("min"), "max": given.get("max")},
    "clamp_min": lambda given: {"min": given.get("min")},
    "clamp_max": lambda given: {"max": given.get("max")},
    "hardsigmoid": lambda given: _HARD,
    "hardswish": lambda given: _HARD,
    "threshold": lambda given: (
        {"min": given["threshold"], "below": given["value"]}
        if given["threshold"] != given["value"]
        else {"min": given["threshold"]}
    ),
    "minimum": lambda given: {"max": "a constant"},
    "maximum": lambda given: {"min": "a constant"},
    "nan_to_num": lambda given: {"nan": given.get("nan") or 0.0},
}


@dataclass(frozen=True)
class Bound:
    """An operation that keeps numbers within bounds.

    Attributes:
        node: the operation.
        values: its bounds by name, in order.
    """

    node: Node
    values: tuple[tuple[str, Any], ...]


def bounds_apart(one: Region, other: Region) -> Iterator[tuple[Bound | None, Bound | None]]:
    """What is bounded otherwise in one of two regions than in the other.

    Args:
        one: what lies in front of a cell.
        other: what lies in front of the cell that it is in another graph.

    Returns:
        The first one's bounds with the second one's in their place; None for none.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> x = torch.zeros(1, 3)
        >>> sides = (surgery.record(each, x, train=False) for each in (nn.ReLU(), nn.ReLU6()))
        >>> [(a.values, b.values) for a, b in bounds_apart(*(side.nodes for side in sides))]
        [((('min', 0),), (('max', 6.0), ('min', 0.0)))]
    """
    mine, theirs = list(_bounds(one)), list(_bounds(other))
    for each in [*mine]:
        twin = next((found for found in theirs if found.values == each.values), None)
        if twin is not None:
            mine.remove(each)
            theirs.remove(twin)
    yield from zip_longest(mine, theirs)


def is_bound(node: Node) -> bool:
    """Whether an operation keeps numbers within bounds that can be read from it."""
    return name_of(node) in _READ


def _bounds(region: Region) -> Iterator[Bound]:
    for node in region:
        if node.role != "operation" or not is_floating(node.outputs[0].dtype):
            continue
        read = _READ.get(name_of(node))
        if read is not None:
            found = sorted(read(settings_of(node)).items())
            values = tuple((name, value) for name, value in found if value is not None)
            yield Bound(node, values)
