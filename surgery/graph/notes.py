"""What is noted while a graph is read, and how normalisations that are written out are known.

    (x - mean) / sqrt(variance + eps) * weight + bias
    x * scale + shift, with scale and shift made of the four

are one normalisation, whichever way round its steps are taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from surgery.graph.aten import packet
from surgery.graph.canonical import Kind, Stream
from surgery.graph.draft import Draft, Link
from surgery.graph.flows import Chain, Flow, Held, Value, held_piece, through
from surgery.graph.folded import STEPS, Folding, fold
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.pieces import MOVES, Piece, Rows, rows_of


@dataclass(eq=False)
class Notes:
    """The values of a graph that is read, and the drafts that were made of it."""

    graph: Graph
    drafts: list[Draft] = field(default_factory=list)
    values: dict[Ref, Value] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    foldings: dict[Ref, Folding] = field(default_factory=dict)
    known: dict[Piece, int] = field(default_factory=dict)

    def _fold(self, node: Node) -> None:
        """Note the steps of a normalisation that is written out."""
        name = packet(node.operation)
        if name in MOVES and self.foldings and node.inputs[0] in self.foldings:
            self.foldings[Ref(node.index)] = self.foldings[node.inputs[0]]
        if name not in STEPS:
            return
        operands = [self.foldings.get(ref) or self.values[ref] for ref in node.inputs]
        known = [each if isinstance(each, Held | Folding) else None for each in operands]
        step = fold(name, known) if operands and None not in known else None
        if step is not None:
            self.foldings[Ref(node.index)] = step

    def _written_out(self, node: Node, form: str) -> tuple[Flow, Folding] | None:
        """A stream, and the scale or shift of a normalisation, in either order."""
        steps = [step for ref in node.inputs if (step := self.foldings.get(ref)) is not None]
        others = [self.values[ref] for ref in node.inputs if ref not in self.foldings]
        flows = [value for value in others if isinstance(value, Flow)]
        if len(steps) != 1 or len(flows) != 1 or steps[0].form != form:
            return None
        return flows[0], steps[0]

    def _at(self, node: Node, place: int | None) -> Value:
        if place is None or place >= len(node.arguments):
            return None
        ref = node.arguments[place]
        return self.values[ref] if isinstance(ref, Ref) else None

    def _rows(self, flow: Flow) -> Rows | None:
        if flow.features is None:
            return flow.rows
        return rows_of(flow.features, self.drafts[flow.cell].features)

    def _draft(self, kind: Kind, name: str, node: Node, flows: list[Flow] | None = None) -> int:
        draft = Draft(kind, name, node.index, node.module)
        draft.links = [Link(Stream(f.cell, f.via), self._rows(f)) for f in flows or ()]
        self.drafts.append(draft)
        return len(self.drafts) - 1

    def _held(self, value: Value) -> Held | None:
        """A parameter that something is done with."""
        return value if isinstance(value, Held) and value.role == "parameter" else None

    def _give(self, draft: Draft, role: str, value: Value) -> bool:
        """Put a tensor into a slot; whether it was one that fits."""
        if isinstance(value, Chain):
            draft.slots[role] = (value.pieces, (sum(p.numel for p in value.pieces),))
        elif isinstance(value, Held) and value.view is not None:
            piece = held_piece(value)
            shape = tuple(size for size in piece.shape if size > 1)
            draft.slots[role] = ((piece,), shape)
        else:
            return False
        return True

    def _users(self, node: Node, flow: Flow) -> int:
        """How many operations read what a bias is added to."""
        for ref in node.inputs:
            if self.values[ref] is flow:
                return self._readers(ref.node)
        return 2

    def _readers(self, number: int) -> int:
        """How many operations and outputs read a node."""
        leaves = (leaf.source.node for leaf in self.graph.leaves if leaf.source is not None)
        return len(self.graph.users[number]) + sum(each == number for each in leaves)

    def _centred(self, node: Node) -> Value:
        """A stream from which a mean is taken."""
        flow, mean = self._at(node, 0), self._at(node, 1)
        if not isinstance(flow, Flow) or not isinstance(mean, Held) or mean.role != "buffer":
            return None
        if mean.view is None or dict(node.keywords).get("alpha", 1) != 1:
            return None
        return replace(through(flow, node), mean=mean)

    def _divided(self, node: Node) -> Value:
        """A centred stream divided by what its numbers are spread by."""
        written = self._written_out(node, "root")
        return None if written is None else self._spread(node, *written)

    def _spread(self, node: Node, flow: Flow, step: Folding) -> Value:
        """A stream times a scale, or a centred one by the spread alone."""
        if flow.mean is None and step.form != "scale":
            return None
        into = replace(flow, via=flow.via[:-1], mean=None) if flow.mean is not None else flow
        made = self._draft("norm", "", node, [into])
        given = dict(step.roles) | ({"mean": flow.mean} if flow.mean is not None else {})
        for role, held in given.items():
            self._give(self.drafts[made], role, held)
        self.drafts[made].shape = self.drafts[made].slots["variance"][1]
        return Flow(made)

    def _lacks(self, node: Node, flow: Flow, held: Held, role: str) -> bool:
        """Whether a stream comes right out of a normalisation that has no such tensor yet."""
        draft = self.drafts[flow.cell]
        if draft.kind != "norm" or "mean" not in draft.slots or flow.via or held.view is None:
            return False
        if self._users(node, flow) > 1 or self._readers(draft.node) > 1:
            return False
        after = role == "bias" or "bias" not in draft.slots
        return after and role not in draft.slots and (held.view.numel(),) == draft.shape

    def _shifted(self, flow: Flow, shift: Folding) -> Value:
        """The second half of a normalisation that is written out."""
        draft, roles = self.drafts[flow.cell], shift.roles
        given = [(role, (held_piece(roles[role]),)) for role in ("weight", "variance")]
        if flow.via or any(draft.slots.get(role, ((),))[0] != piece for role, piece in given):
            return None
        for role in ("bias", "mean"):
            self._give(draft, role, roles[role])
        return flow
