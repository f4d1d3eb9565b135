"""What both models of a comparison go on with where they begin to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from surgery import tree
from surgery.graph.align import Alignment
from surgery.graph.canonical import Cell
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.recorder import UPDATED
from surgery.graph.skeleton import Skeleton
from surgery.graph.structure import tensors
from surgery.operations.seams import Common, ends_of, produced, value_of
from surgery.operations.steps import OutOfStepError, Planted, Steps


@dataclass(frozen=True)
class End:
    """Where the common part ends: the donor's node, the recipient's, its name, the donor's cell."""

    donor: int
    recipient: int
    name: str
    cell: int


@dataclass(frozen=True, eq=False)
class Planting:
    """What is noted in both models, and what is put in.

    Attributes:
        graphs: of donor and recipient.
        given: by node of the recipient, the donor's whose result goes on there.
        own: by node of the donor, its earlier one whose result goes on there: the recipient has
            nothing between the two.
        tables: the donor's parameters, each with the recipient's that it stands in for.
        cut: the donor's nodes that the comparison goes on from, whatever leads to them.
        ends: what is compared.
        titles: the places for people, the recipient's module and the donor's.
    """

    graphs: tuple[Graph, Graph]
    given: Mapping[int, int]
    own: Mapping[int, int]
    tables: Mapping[str, str]
    cut: frozenset[int]
    ends: tuple[End, ...]
    titles: tuple[str, ...]

    @staticmethod
    def of(alignment: Alignment, common: Common) -> Planting:
        """Where to note and to put in something, for the common part of two graphs."""
        one, other = alignment.one, alignment.other
        back = {b: a for a, b in common.cells.items()}
        given: dict[int, int] = {}
        own: dict[int, int] = {}
        tables: dict[str, str] = {}
        cut, titles = set(), []
        for a, b in common.seams:
            titles.append(f"{_title(other.cells[b])} ({_title(one.cells[a])} in the donor)")
            if one.cells[a].kind == "value":
                slots = one.cells[a].slots[0], other.cells[b].slots[0]
                tables[slots[0].piece.address] = slots[1].piece.address
                continue
            there, here = value_of(one, a), value_of(other, b)
            earlier = value_of(one, back[b]) if b in back else None
            if there is None or here is None:
                continue
            if a not in common.cells:
                cut.add(there)
            if earlier is not None:
                own[there] = earlier
            else:
                given[here] = there
        ends = []
        for a, b in ends_of(alignment, common):
            there, here = produced(one, a), produced(other, b)
            if there is None or here is None or not one.graph.nodes[there].depends_on_input:
                continue
            if UPDATED not in (one.graph.nodes[there].operation, other.graph.nodes[here].operation):
                ends.append(End(there, here, other.cells[b].module or "the model", a))
        return Planting(
            (one.graph, other.graph),
            given,
            own,
            tables,
            frozenset(cut),
            tuple(ends),
            tuple(dict.fromkeys(titles)),
        )

    def of_donor(self, example: Example, seen: Mapping[int, torch.Tensor] | None = None) -> Steps:
        """The steps of the donor.

        Args:
            example: what it is run on.
            seen: what an earlier pass noted; the common part then goes on from that.
        """
        noted = {*self.given.values(), *self.own.values(), *self.cut}
        noted |= {end.donor for end in self.ends}
        planted = {a: _earlier(b) for a, b in self.own.items()}
        if seen is not None:
            planted = {node: _always(seen[node]) for node in self.cut}
        steps = Steps(self.graphs[0], noted, planted)
        inputs = [node.index for node in self.graphs[0].nodes if node.role == "input"]
        given = [tensor for _, tensor in tensors((example.args, dict(example.kwargs)))]
        steps.seen.update(zip(inputs, given, strict=False))
        return steps

    def of_recipient(self, seen: Mapping[int, torch.Tensor]) -> Steps:
        """The steps of the recipient, after a pass of the donor that noted this."""
        planted = {here: _always(seen[there]) for here, there in self.given.items()}
        return Steps(self.graphs[1], {end.recipient for end in self.ends}, planted)

    def substitute(self, donor: Skeleton, recipient: Skeleton) -> None:
        """Give a recipient's stand-in the donor's tables where only their length differs.

        Raises:
            OutOfStepError: one is no table of the other's form.
        """
        theirs = {entry.address: entry.tensor for entry in tree.index(donor.model).tensors.values()}
        ours = {entry.address: entry for entry in tree.index(recipient.model).tensors.values()}
        for there, here in self.tables.items():
            tensor, entry = theirs[there].detach(), ours[here]
            if tensor.dim() != entry.tensor.dim() or tensor.shape[-1] != entry.tensor.shape[-1]:
                raise OutOfStepError(f"{there} has another form than {here}")
            entry.tensor.data = tensor.clone()


def _title(cell: Cell) -> str:
    held = next((slot.piece.address for slot in cell.slots if slot.piece.address), "")
    return (held if cell.kind == "value" else cell.module) or held or cell.name or "the model"


def _always(value: torch.Tensor) -> Planted:
    return lambda seen: value


def _earlier(node: int) -> Planted:
    return lambda seen: seen[node]
