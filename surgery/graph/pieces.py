"""Parts of tensors as they lie in memory: rows of a packed weight, a transposed one, a whole one.

Views, transposes and slices move no number. What they leave of a parameter is a shape, a stride
and an offset, and two layouts of one weight differ in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from surgery.graph.aten import operator, packet
from surgery.graph.graph import Node, Ref

# Operators that move numbers and change none.
KEEPS = frozenset({"clone", "contiguous", "alias", "detach", "_to_copy", "lift_fresh", "to"})
MOVES = KEEPS | {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten"),
    *("permute", "transpose", "t", "expand", "select", "slice", "unbind", "narrow", "unflatten"),
    *("split", "split_with_sizes", "chunk", "movedim", "numpy_T", "view_as", "expand_as"),
    "as_strided",
}

# Which features of an axis: the first, and how often and how far to step, outermost first.
Rows: TypeAlias = tuple[int, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a parameter or buffer, or all of it.

    Attributes:
        address: the first address of the tensor; empty for zeros that belong to no tensor.
        shape: its sizes.
        stride: how many elements of the tensor, laid out contiguously, each axis steps over.
        offset: the element that it begins with.

    Example:
        >>> import torch
        >>> from surgery.graph.pieces import Piece
        >>> keys = Piece("qkv.weight", (4, 4), (4, 1), 16)
        >>> keys.of(torch.arange(48).view(12, 4))[0].tolist()
        [16, 17, 18, 19]
    """

    address: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of a contiguous tensor, as a view."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Whether it is all of a tensor of that shape, in order."""
        tight = contiguous(self.shape)
        ordered = all(
            size == 1 or mine == other
            for size, mine, other in zip(self.shape, self.stride, tight, strict=True)
        )
        return ordered and not self.offset and self.numel == math.prod(shape)

    def __str__(self) -> str:
        if not self.address:
            return "zeros"
        return f"{self.address}[{self.offset}:{self.offset + self.numel}]"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor.

    Example:
        >>> contiguous((2, 3, 4))
        (12, 4, 1)
    """
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps)) if shape else ()


@lru_cache(maxsize=4096)
def layout(shape: tuple[int, ...]) -> torch.Tensor:
    """A contiguous tensor without memory, on which views can be tried."""
    return torch.empty_strided(shape, contiguous(shape), device="meta")


def piece_of(address: str, view: torch.Tensor) -> Piece:
    """The part of a tensor that a view of its layout shows, what it repeats left out."""
    axes = [
        (size, stride) for size, stride in zip(view.shape, view.stride(), strict=True) if stride
    ]
    shape, stride = (tuple(each) for each in zip(*axes, strict=True)) if axes else ((), ())
    return Piece(address, shape, stride, int(view.storage_offset()))


def varies(view: torch.Tensor) -> bool:
    """Whether a batch of matrices has more than one."""
    return view.shape[0] > 1 and view.stride(0) > 0


def moved(node: Node, view: torch.Tensor | None) -> list[torch.Tensor | None]:
    """What an operator of movement makes of a layout, for each of its results.

    Args:
        node: the operation; its first argument is what it moves.
        view: the layout; None where it is not known.

    Returns:
        One layout for each result; None where numbers would have to be copied.
    """
    unknown: list[torch.Tensor | None] = [None] * len(node.outputs)
    if view is None:
        return unknown
    if packet(node.operation) in KEEPS:
        return [view]
    function = operator(node.operation)
    arguments = [view if isinstance(value, Ref) else value for value in node.arguments]
    if function is None or packet(node.operation) == "as_strided":
        # What it names are places in memory, and a layout has others.
        return unknown
    if packet(node.operation) in ("_unsafe_view", "reshape"):
        function, arguments = torch.ops.aten.view.default, arguments[:2]
    try:
        result: Any = function(*arguments, **dict(node.keywords))
    except RuntimeError:
        # A view of what lies apart: it would be a copy.
        return unknown
    return list(result) if isinstance(result, list | tuple) else [result]


def features_last(shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """A layout of activations in which the features of one position lie side by side."""
    rest = [size for place, size in enumerate(shape) if place != axis]
    return torch.empty((*rest, shape[axis]), device="meta").movedim(-1, axis)


def rows_of(view: torch.Tensor, features: int) -> Rows | None:
    """Which of the features a view of such a layout shows; None for all of them.

    Example:
        >>> import torch
        >>> packed = torch.empty(2, 5, 12, device="meta").view(2, 5, 3, 4).select(2, 1)
        >>> rows_of(packed, 12)
        (4, ((4, 1),))
    """
    steps = sorted(
        (
            (stride, size)
            for stride, size in zip(view.stride(), view.shape, strict=True)
            if 0 < stride < features and size > 1
        ),
        reverse=True,
    )
    merged: list[tuple[int, int]] = []
    for stride, size in reversed(steps):
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    if math.prod(size for size, _ in merged) == features:
        return None
    return int(view.storage_offset()) % features, tuple(reversed(merged))


def numbered(rows: Rows) -> list[int]:
    """The features that rows name, in order.

    Example:
        >>> numbered((1, ((2, 6), (2, 1))))
        [1, 2, 7, 8]
    """
    offset, steps = rows
    found = [offset]
    for size, stride in steps:
        found = [first + place * stride for first in found for place in range(size)]
    return found


def cut(piece: Piece, rows: Rows) -> Piece:
    """The rows of a piece along its first axis.

    Example:
        >>> cut(Piece("w", (12, 3), (3, 1)), (4, ((4, 1),)))
        Piece(address='w', shape=(4, 3), stride=(3, 1), offset=12)
    """
    offset, steps = rows
    first, *rest = piece.stride
    sizes = tuple(size for size, _ in steps) or (1,)
    strides = tuple(step * first for _, step in steps) or (first,)
    return Piece(
        piece.address,
        (*sizes, *piece.shape[1:]),
        (*strides, *rest),
        piece.offset + offset * first,
    )


def cut_segments(segments: tuple[Piece, ...], rows: Rows) -> tuple[Piece, ...] | None:
    """The rows of pieces that follow each other; None where they cross from one to the next."""
    if len(segments) == 1:
        return (cut(segments[0], rows),)
    offset, steps = rows
    if len(steps) > 1 or (steps and steps[0][1] != 1):
        return None
    count = steps[0][0] if steps else 1
    for start, segment in _starts(segments):
        if start <= offset and offset + count <= start + segment.shape[0]:
            return (cut(segment, (offset - start, ((count, 1),))),)
    return None


def _starts(segments: tuple[Piece, ...]) -> Iterator[tuple[int, Piece]]:
    start = 0
    for segment in segments:
        yield start, segment
        start += segment.shape[0]
