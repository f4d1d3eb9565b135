"""What a graph computes, in a form in which equal mathematics looks equal.

A recorded graph has views, copies, activations and ten ways to write one product. What stays here
are *cells*: products with weights, normalisations, scales, values that are parameters themselves,
and the joins where several streams meet. Between two cells lie operations on one stream, which are
kept by number so that they can be compared, and which say nothing about where a weight belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from surgery.graph.graph import Graph, Spec
from surgery.graph.pieces import Piece

Kind: TypeAlias = Literal["input", "product", "norm", "scale", "lookup", "value", "join"]

# Joins in which the order of the streams says nothing.
UNORDERED = frozenset({"add", "mul", "maximum", "minimum", "logical_and", "logical_or"})


@dataclass(frozen=True, slots=True)
class Stream:
    """What flows into a cell: where it comes from, and the operations that it passed.

    Attributes:
        cell: the number of the cell that made it.
        via: the nodes of the graph that it went through, those that move numbers left out.
    """

    cell: int
    via: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor, or part of one, that a cell has.

    Attributes:
        role: ``weight``, ``bias``, ``mean`` or ``variance``.
        piece: which numbers of which tensor.
        shape: their sizes in the form that all implementations have in common.
    """

    role: str
    piece: Piece
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One operation that has tensors of its own, or in which streams meet.

    Attributes:
        kind: what it does.
        name: for a join, the operator, and for an input, its path.
        shape: of its weight; of an input or join empty.
        slots: its tensors.
        streams: what flows in, in order.
        node: the node of the graph that it was made from.
        module: the address of the module it ran in.
    """

    kind: Kind
    name: str
    shape: tuple[int, ...]
    slots: tuple[Slot, ...]
    streams: tuple[Stream, ...]
    node: int
    module: str

    @property
    def label(self) -> tuple[object, ...]:
        """What it is, without where it is: equal for cells that may take each other's weights."""
        return (self.kind, self.name, self.shape)

    @property
    def ordered(self) -> bool:
        """Whether the order of what flows in says something."""
        return self.kind != "join" or self.name not in UNORDERED

    def __str__(self) -> str:
        held = ", ".join(str(slot.piece) for slot in self.slots)
        return f"{self.kind} {self.name} {self.shape} ({held})"


@dataclass(frozen=True, slots=True)
class End:
    """One tensor of the output: its path, its form, and what it is."""

    path: str
    spec: Spec
    stream: Stream | None


@dataclass(frozen=True)
class Canonical:
    """The cells of a graph in order of execution, and its outputs.

    Attributes:
        graph: what it was made from.
        cells: in order; what flows into a cell stands before it.
        ends: the outputs.
    """

    graph: Graph
    cells: tuple[Cell, ...]
    ends: tuple[End, ...]

    @cached_property
    def tensors(self) -> dict[str, int]:
        """By address of a tensor: how many of its elements cells have, each piece once."""
        found: dict[str, int] = {}
        for piece in dict.fromkeys(slot.piece for cell in self.cells for slot in cell.slots):
            if piece.address:
                found[piece.address] = found.get(piece.address, 0) + piece.numel
        return found
