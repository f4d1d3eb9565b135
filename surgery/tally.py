"""Counts of tensors: cells of what agrees, tallies that add up, and what is read off them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from surgery.inventory import Kind

# What a cell tells apart: kind, trainable, persistent, dtype, device; and its three counts.
Key: TypeAlias = tuple[Kind, bool, bool, torch.dtype, torch.device]
Counts: TypeAlias = defaultdict[Key, list[int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """Tensors that agree in everything one may want to tell apart.

    Attributes:
        kind: ``parameter``, ``buffer`` or ``packed`` (the weights a quantised module keeps in
            an object of its own; they are no parameters).
        trainable: whether they require a gradient.
        persistent: whether they are in the state dict.
        dtype: their dtype.
        device: where they live.
        tensors: how many there are.
        elements: how many numbers they hold together.
        bytes: how much memory these take.
    """

    kind: Kind
    trainable: bool
    persistent: bool
    dtype: torch.dtype
    device: torch.device
    tensors: int
    elements: int
    bytes: int


class Counted:
    """What can be read off cells: shared by a whole model, a row and a tally."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def cells(self) -> tuple[Cell, ...]:
            """The cells that are counted."""

    def elements(self, kind: Kind) -> int:
        """How many numbers the tensors of a kind hold."""
        return sum(cell.elements for cell in self.cells if cell.kind == kind)

    @property
    def total(self) -> int:
        """Elements of all parameters, each parameter once."""
        return self.elements("parameter")

    @property
    def trainable(self) -> int:
        """Elements of the parameters that require a gradient."""
        return sum(cell.elements for cell in self.cells if cell.trainable)

    @property
    def frozen(self) -> int:
        """Elements of the parameters that do not."""
        return self.total - self.trainable

    @property
    def trainable_ratio(self) -> float:
        """Share of the parameters that is trainable, 0 to 1; 0 where there are none."""
        return self.trainable / self.total if self.total else 0.0

    @property
    def buffers(self) -> int:
        """Elements of all buffers, persistent or not."""
        return self.elements("buffer")

    @property
    def persistent_buffers(self) -> int:
        """Elements of the buffers that are in the state dict."""
        return sum(c.elements for c in self.cells if c.kind == "buffer" and c.persistent)

    @property
    def packed(self) -> int:
        """Elements of the packed weights of quantised modules, which are no parameters."""
        return self.elements("packed")

    @property
    def bytes(self) -> int:
        """Memory of parameters, buffers and packed weights, in bytes."""
        return sum(cell.bytes for cell in self.cells)

    @property
    def bytes_by(self) -> dict[tuple[torch.dtype, torch.device], int]:
        """Memory by dtype and device, in bytes, the most first."""
        found: dict[tuple[torch.dtype, torch.device], int] = defaultdict(int)
        for cell in self.cells:
            found[cell.dtype, cell.device] += cell.bytes
        return dict(sorted(found.items(), key=lambda item: (-item[1], str(item[0]))))


@dataclass(frozen=True, slots=True)
class Tally(Counted):
    """The count of some tensors. Tallies add up: ``a + b``."""

    cells: tuple[Cell, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        counts: Counts = defaultdict(zeros)
        for cell in (*self.cells, *other.cells):
            key = (cell.kind, cell.trainable, cell.persistent, cell.dtype, cell.device)
            add(counts[key], cell.tensors, cell.elements, cell.bytes)
        return Tally(cells_of(counts))

    def __radd__(self, other: object) -> Tally:
        # ``sum`` starts from 0.
        return self if other == 0 else NotImplemented


def zeros() -> list[int]:
    """No tensors, elements or bytes."""
    return [0, 0, 0]


def add(count: list[int], tensors: int, elements: int, size: int) -> None:
    """Count some more, in place."""
    count[0] += tensors
    count[1] += elements
    count[2] += size


def cells_of(counts: Mapping[Key, list[int]]) -> tuple[Cell, ...]:
    """Cells in an order of their own, so that equal counts are equal tuples."""
    order = sorted(counts, key=lambda key: (*key[:3], str(key[3]), str(key[4])))
    return tuple(Cell(*key, *counts[key]) for key in order)
