"""What a value is while a graph is read: a stream, a tensor of the model, or neither."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from surgery.graph.aten import is_pointwise
from surgery.graph.canonical import Stream
from surgery.graph.draft import Link
from surgery.graph.graph import Node
from surgery.graph.pieces import Piece, Rows, piece_of
from surgery.graph.recorder import UPDATED


@dataclass(frozen=True, slots=True)
class Flow:
    """A value that was computed.

    Attributes:
        cell: the draft it came from.
        features: how that draft's features lie in it, where that can still be said.
        rows: which of them it has, where some are missing for good.
        via: the operations it went through since.
        mean: a buffer that the last of them took from it.
    """

    cell: int
    features: torch.Tensor | None = None
    rows: Rows | None = None
    via: tuple[int, ...] = ()
    mean: Held | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter or buffer, or a view of one, that nothing was done to."""

    address: str
    role: str
    view: torch.Tensor | None
    zeroed: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """Vectors of the model one after the other, as one vector."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """What was computed from one parameter alone: it stands for that parameter, whole."""

    address: str
    via: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Streams side by side along an axis of a value, each made by tensors of its own.

    Attributes:
        flows: one for each entry; their features are laid out in the whole value.
        axis: of the value.
    """

    flows: tuple[Flow, ...]
    axis: int


# None is a constant: no parameter and no input.
Value: TypeAlias = "Flow | Held | Made | Chain | Lanes | None"


def through(flow: Flow, node: Node) -> Flow:
    """A stream behind an operation that has no tensors of its own."""
    via = (*flow.via, node.index)
    same = is_pointwise(node.operation) or node.operation == UPDATED
    if same and flow.features is not None and flow.features.shape == node.outputs[0].shape:
        return replace(flow, via=via, mean=None)
    return Flow(flow.cell, None, flow.rows, via)


def link_of(flow: Flow) -> Link:
    """A stream as a link to the draft it came from."""
    return Link(Stream(flow.cell, flow.via), flow.rows)


def held_piece(held: Held) -> Piece:
    """Which numbers of its tensor a view of a parameter or buffer shows."""
    if held.view is None:
        return Piece(held.address, (), ())
    return piece_of(held.address, held.view)


def with_zeros(before: Held, written: Held) -> Value:
    """A vector in which a range was set to zero."""
    whole, zeros = held_piece(before), held_piece(written)
    if len(whole.shape) != 1 or len(zeros.shape) != 1 or whole.stride != zeros.stride:
        return None
    start, end = zeros.offset, zeros.offset + zeros.numel
    around = ((0, start), (end, whole.numel))
    first, last = (Piece(whole.address, (b - a,), (1,), a) for a, b in around)
    middle = Piece("", zeros.shape, (1,))
    return Chain(tuple(piece for piece in (first, middle, last) if piece.numel))
