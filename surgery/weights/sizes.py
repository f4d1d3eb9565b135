"""Sizes that a file says: what can be the shape of a tensor. No torch is needed to tell."""

from __future__ import annotations

import math

LARGEST = 2**63 - 1


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor whose elements lie in order.

    Example:
        >>> contiguous((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_count(value: object) -> bool:
    """Whether a value from a file is a number of things: whole, not negative, not absurd.

    Example:
        >>> is_count(3), is_count(True), is_count(-1), is_count(2**63)
        (True, False, False, False)
    """
    return type(value) is int and 0 <= value <= LARGEST


def representable(shape: tuple[int, ...]) -> bool:
    """Whether torch can have a tensor of this shape at all.

    An empty one may have any other sizes, and torch still multiplies them.

    Example:
        >>> representable((0, 5)), representable((0, 2**40, 2**40))
        (True, False)
    """
    return math.prod(size or 1 for size in shape) <= LARGEST
