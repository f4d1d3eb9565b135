"""An axis that holds more than the classes: several entries for each, one after the other or apart.

A box regressor makes four numbers for each class; a detector that looks at nine anchors makes every
class nine times. Both are one axis until a view splits it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """How an axis holds the classes.

    Attributes:
        outer: how often all classes are there, one after the other: the anchors of a detector.
        inner: how many entries in a row belong to one class: the four of a box.

    Example:
        >>> from surgery.graph.packing import Packing
        >>> Packing(outer=9).entries(91), Packing(inner=4).entries(91)
        (819, 364)
        >>> Packing(outer=9).classes(819)
        91
    """

    outer: int = 1
    inner: int = 1

    @property
    def factor(self) -> int:
        """How many entries there are for each class."""
        return self.outer * self.inner

    def entries(self, classes: int) -> int:
        """The length of the axis for so many classes."""
        return self.factor * classes

    def classes(self, entries: int) -> int:
        """The number of classes on an axis of that length."""
        return entries // self.factor


PLAIN = Packing()


def splits(
    before: tuple[int, ...], axis: int, after: tuple[int, ...]
) -> Iterator[tuple[int, Packing]]:
    """The axes that a view makes of one, each with what lies around it within that one.

    Args:
        before: a shape.
        axis: the axis of it that is split.
        after: the shape with the same number of entries that the view gives it.

    Example:
        >>> from surgery.graph.packing import splits
        >>> list(splits((2, 819, 7, 7), 1, (2, 9, 91, 7, 7)))
        [(1, Packing(outer=1, inner=91)), (2, Packing(outer=9, inner=1))]
    """
    ahead, behind = math.prod(before[:axis]), math.prod(before[axis + 1 :])
    for place, size in enumerate(after if 0 not in before else ()):
        outer, outer_rest = divmod(math.prod(after[:place]), ahead)
        inner, inner_rest = divmod(math.prod(after[place + 1 :]), behind)
        if not outer_rest and not inner_rest and outer * size * inner == before[axis]:
            yield place, Packing(outer, inner)


def through_view(
    before: tuple[int, ...], axis: int, after: tuple[int, ...], packing: Packing
) -> tuple[int, Packing] | None:
    """The axis behind a view that holds the classes, and how; None where they are torn apart."""
    found = [
        (place, Packing(packing.outer // around.outer, packing.inner // around.inner))
        for place, around in splits(before, axis, after)
        if packing.outer % around.outer == 0 and packing.inner % around.inner == 0
    ]
    # An axis that holds the classes and nothing else, where there is one; it may be of length one.
    apart = [each for each in found if each[1] == PLAIN]
    return next(iter((*apart, *found)), None)
