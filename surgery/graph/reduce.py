"""Read a graph into cells: take away what moves numbers, and name what has tensors of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from surgery.graph.aten import is_pointwise, packet
from surgery.graph.canonical import Canonical, Kind, Stream
from surgery.graph.draft import Draft, Link, finished
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.pieces import (
    MOVES,
    Piece,
    Rows,
    features_last,
    layout,
    moved,
    piece_of,
    rows_of,
)
from surgery.graph.recorder import UPDATED
from surgery.graph.skeleton import is_floating


@dataclass(frozen=True, slots=True)
class Flow:
    """A value that was computed.

    Attributes:
        cell: the draft it came from.
        features: how that draft's features lie in it, where that can still be said.
        rows: which of them it has, where some are missing for good.
        via: the operations it went through since.
    """

    cell: int
    features: torch.Tensor | None = None
    rows: Rows | None = None
    via: tuple[int, ...] = ()


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


# None is a constant: no parameter and no input.
_Value: TypeAlias = "Flow | Held | Chain | None"

_NORMS: Mapping[str, tuple[str, ...]] = {
    "_native_batch_norm_legit_no_training": ("weight", "bias", "mean", "variance"),
    "native_batch_norm": ("weight", "bias", "mean", "variance"),
    "cudnn_batch_norm": ("weight", "bias", "mean", "variance"),
    "batch_norm": ("weight", "bias", "mean", "variance"),
}
_PLACES: Mapping[str, tuple[int, int]] = {
    "native_layer_norm": (2, 3),
    "native_group_norm": (1, 2),
    "_fused_rms_norm": (2, 99),
}
_ATTENTIONS = ("scaled_dot_product",)
# They read the form of a tensor and none of its numbers.
_CREATES = ("new_", "empty", "zeros", "ones", "full", "arange")


def canonical(graph: Graph) -> Canonical:
    """Read a recorded forward pass into cells.

    Args:
        graph: recorded in eval mode.

    Returns:
        Its cells, those that lead to no output left out.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> one = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> other = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten())
        >>> x = torch.zeros(1, 3, 2, 2)
        >>> cells = [canonical(surgery.record(m, x, train=False)).cells for m in (one, other)]
        >>> cells[0][1].label == cells[1][1].label
        True
    """
    reader = _Reader(graph)
    for node in graph.nodes:
        reader.read(node)
    ends = [
        (leaf.path, leaf.spec, reader.link(leaf.source) if leaf.source is not None else None)
        for leaf in graph.leaves
    ]
    return finished(graph, reader.drafts, ends)


@dataclass(eq=False)
class _Reader:
    graph: Graph
    drafts: list[Draft] = field(default_factory=list)
    values: dict[Ref, _Value] = field(default_factory=dict)
    known: dict[Piece, int] = field(default_factory=dict)

    def read(self, node: Node) -> None:
        """Give a value to everything that a node makes."""
        if node.role != "operation":
            self.values[Ref(node.index)] = self._source(node)
            return
        made = self._made(node)
        for place in range(len(node.outputs)):
            value = made if not isinstance(made, list) else made[min(place, len(made) - 1)]
            self.values[Ref(node.index, place)] = value

    def link(self, ref: Ref) -> Link | None:
        """What flows where a value is read; None for constants."""
        value = self.values[ref]
        flow = self._flow(value, ref.node) if value is not None else None
        return None if flow is None else _link(flow)

    def _source(self, node: Node) -> _Value:
        floating = is_floating(node.outputs[0].dtype)
        if node.role == "input":
            return Flow(self._draft("input", node.addresses[0] if node.addresses else "", node))
        if node.role == "parameter" or (node.role == "buffer" and floating and node.addresses):
            return Held(node.addresses[0], node.role, layout(node.outputs[0].shape))
        return None

    def _made(self, node: Node) -> _Value | list[_Value]:
        name = packet(node.operation).rstrip("_") or packet(node.operation)
        if name.startswith(_CREATES) or name.endswith("_like"):
            return None
        if name in MOVES and len(node.inputs) == 1:
            return self._moved(node)
        if node.operation == UPDATED:
            return self._updated(node)
        if name in ("zero", "fill") and isinstance(self._at(node, 0), Held):
            held = self._at(node, 0)
            zero = name == "zero" or node.arguments[1:2] in ((0,), ("0",), (0.0,))
            return replace(held, zeroed=True) if isinstance(held, Held) and zero else None
        handler = self._handler(name)
        made = handler(node) if handler is not None else None
        return made if made is not None else self._plain(node, name)

    def _handler(self, name: str) -> Callable[[Node], _Value] | None:
        if "convolution" in name:
            return self._convolution
        if name in _NORMS:
            return self._norm
        if name in _PLACES:
            return self._standardised
        return {
            "addmm": lambda node: self._matrix(node, 1, 2, 0),
            "mm": lambda node: self._matrix(node, 0, 1, None),
            "bmm": lambda node: self._matrix(node, 0, 1, None),
            "linear": self._linear,
            "add": self._added,
            "mul": self._scaled,
            "cat": self._chained,
            "embedding": self._looked_up,
            "index": self._looked_up,
        }.get(name)

    def _at(self, node: Node, place: int | None) -> _Value:
        if place is None or place >= len(node.arguments):
            return None
        ref = node.arguments[place]
        return self.values[ref] if isinstance(ref, Ref) else None

    def _moved(self, node: Node) -> _Value | list[_Value]:
        value = self.values[node.inputs[0]]
        if isinstance(value, Held):
            views = moved(node, value.view)
            return [replace(value, view=view) for view in views]
        if isinstance(value, Flow):
            if value.features is None:
                return value
            views = moved(node, value.features)
            rows = self._rows(value)
            return [replace(value, features=v, rows=rows if v is None else None) for v in views]
        if isinstance(value, Chain):
            keeps = node.outputs[0].shape == self.graph.spec(node.inputs[0]).shape
            return value if keeps else None
        return None

    def _rows(self, flow: Flow) -> Rows | None:
        if flow.features is None:
            return flow.rows
        return rows_of(flow.features, self.drafts[flow.cell].features)

    def _updated(self, node: Node) -> _Value:
        """A tensor after something was written into its memory through a view."""
        before, written = (self.values[ref] for ref in node.inputs)
        if isinstance(before, Held) and isinstance(written, Held) and written.zeroed:
            return _with_zeros(before, written)
        if before is None:
            return _through(written, node) if isinstance(written, Flow) else written
        if written is None:
            return before
        return self._plain(node, "updated")

    def _plain(self, node: Node, name: str) -> _Value:
        """An operation without tensors of its own: one stream goes on, several are joined."""
        flows = [
            flow
            for ref in node.inputs
            if (flow := self._flow(self.values[ref], node.index)) is not None
        ]
        if any(words in name for words in _ATTENTIONS) and len(flows) >= 3:
            weights = Flow(self._join("bmm", node, flows[:2]), via=(node.index,))
            return Flow(self._join("bmm", node, [weights, flows[2]]))
        return self._joined(node, name, flows)

    def _joined(self, node: Node, name: str, flows: list[Flow]) -> _Value:
        sources = {(flow.cell, self._rows(flow)) for flow in flows}
        if not flows:
            return None
        if len(sources) == 1:
            longest = max(flows, key=lambda flow: len(flow.via))
            return _through(longest, node)
        return Flow(self._join(name, node, flows))

    def _join(self, name: str, node: Node, flows: list[Flow]) -> int:
        return self._draft("join", _JOINS.get(name, name), node, flows)

    def _flow(self, value: _Value, node: int) -> Flow | None:
        """A value as a stream; a parameter by itself is a cell of its own."""
        if isinstance(value, Flow):
            return replace(value, features=None, rows=self._rows(value))
        if isinstance(value, Held) and value.role == "parameter" and not value.zeroed:
            return Flow(self._parameter("value", value, node))
        if isinstance(value, Chain):
            return Flow(self._draft("value", "", self.graph.nodes[node]))
        return None

    def _parameter(self, kind: Kind, held: Held, node: int) -> int:
        piece = _piece(held)
        if piece not in self.known:
            shape = tuple(size for size in piece.shape if size > 1)
            made = self._draft(kind, "", self.graph.nodes[node])
            self.drafts[made].shape = shape
            self.drafts[made].slots["weight"] = ((piece,), shape)
            self.known[piece] = made
        return self.known[piece]

    def _draft(self, kind: Kind, name: str, node: Node, flows: list[Flow] | None = None) -> int:
        draft = Draft(kind, name, node.index, node.module)
        draft.links = [_link(replace(f, rows=self._rows(f), features=None)) for f in flows or ()]
        self.drafts.append(draft)
        return len(self.drafts) - 1

    def _held(self, value: _Value) -> Held | None:
        """A parameter that something is done with."""
        return value if isinstance(value, Held) and value.role == "parameter" else None

    def _matrix(self, node: Node, first: int, second: int, bias: int | None) -> _Value:
        one, other = self._at(node, first), self._at(node, second)
        if isinstance(one, Flow) and (held := self._held(other)) is not None:
            view = held.view.transpose(-1, -2) if held.view is not None else None
            axis = len(node.outputs[0].shape) - 1
            return self._product(node, one, held, view, self._at(node, bias), axis)
        if isinstance(other, Flow) and (held := self._held(one)) is not None and bias is None:
            axis = len(node.outputs[0].shape) - 2
            return self._product(node, other, held, held.view, None, axis)
        return None

    def _linear(self, node: Node) -> _Value:
        data, held = self._at(node, 0), self._held(self._at(node, 1))
        if not isinstance(data, Flow) or held is None:
            return None
        axis = len(node.outputs[0].shape) - 1
        return self._product(node, data, held, held.view, self._at(node, 2), axis)

    def _convolution(self, node: Node) -> _Value:
        data, held = self._at(node, 0), self._held(self._at(node, 1))
        if not isinstance(data, Flow) or held is None or held.view is None:
            return None
        view, shape = held.view, self.graph.spec(node.inputs[0]).shape
        turned, groups = bool(node.arguments[6]), int(node.arguments[8])
        kernel, spatial = tuple(view.shape[2:]), shape[2:]
        whole = math.prod(node.outputs[0].shape[2:]) == 1 and kernel == spatial
        padded = any(node.arguments[4])
        if not turned and groups == 1 and (math.prod(kernel) == 1 or (whole and not padded)):
            view = view.reshape(view.shape[0], -1)
        return self._product(node, data, held, view, self._at(node, 2), 1)

    def _product(
        self,
        node: Node,
        data: Flow,
        held: Held,
        view: torch.Tensor | None,
        bias: _Value,
        axis: int,
    ) -> _Value:
        if isinstance(bias, Flow) or view is None:
            return None
        made = self._draft("product", "", node, [data])
        draft, shape = self.drafts[made], node.outputs[0].shape
        draft.features = shape[axis]
        draft.slots["weight"] = ((piece_of(held.address, view),), tuple(view.shape))
        draft.shape = tuple(view.shape)
        if "convolution" in node.operation and node.arguments[6]:
            draft.name = "transposed"
        self._give(draft, "bias", bias)
        return Flow(made, features_last(shape, axis))

    def _give(self, draft: Draft, role: str, value: _Value) -> bool:
        """Put a tensor into a slot; whether it was one that fits."""
        if isinstance(value, Chain):
            draft.slots[role] = (value.pieces, (sum(p.numel for p in value.pieces),))
        elif isinstance(value, Held) and value.view is not None:
            piece = _piece(value)
            shape = tuple(size for size in piece.shape if size > 1)
            draft.slots[role] = ((piece,), shape)
        else:
            return False
        return True

    def _norm(self, node: Node) -> _Value:
        data = self._at(node, 0)
        if not isinstance(data, Flow):
            return None
        values = [self._at(node, place) for place in (1, 2, 3, 4)]
        if not any(isinstance(value, Held) for value in values):
            return None
        made = self._draft("norm", "", node, [data])
        for role, value in zip(_NORMS["batch_norm"], values, strict=True):
            self._give(self.drafts[made], role, value)
        self.drafts[made].shape = (self.graph.spec(node.inputs[0]).shape[1],)
        return Flow(made)

    def _standardised(self, node: Node) -> _Value:
        places = _PLACES[packet(node.operation)]
        data, weight, bias = (self._at(node, place) for place in (0, *places))
        if not isinstance(data, Flow) or not isinstance(weight, Held):
            return None
        made = self._draft("scale", "", node, [replace(data, via=(*data.via, node.index))])
        self._give(self.drafts[made], "weight", weight)
        self._give(self.drafts[made], "bias", bias)
        self.drafts[made].shape = self.drafts[made].slots["weight"][1]
        return Flow(made)

    def _pair(self, node: Node) -> tuple[Flow, Held | Chain] | None:
        """A stream and a tensor of the model, in either order."""
        values = [self._at(node, 0), self._at(node, 1)]
        flows = [value for value in values if isinstance(value, Flow)]
        held = [v for v in values if isinstance(v, Chain) or self._held(v) is not None]
        if len(flows) != 1 or len(held) != 1 or isinstance(held[0], Flow | None):
            return None
        return flows[0], held[0]

    def _added(self, node: Node) -> _Value:
        """A bias that is added by itself."""
        pair = self._pair(node)
        if pair is None:
            return None
        flow, value = pair
        draft = self.drafts[flow.cell]
        size = value.view.numel() if isinstance(value, Held) and value.view is not None else 0
        if isinstance(value, Chain):
            size = sum(piece.numel for piece in value.pieces)
        if flow.via or self._rows(flow) is not None or "bias" in draft.slots:
            return None
        last = node.outputs[0].shape[-1] == size or size == math.prod(draft.shape)
        fits = draft.kind == "product" and flow.features is not None and size == draft.features
        fits = fits or (draft.kind == "scale" and size == math.prod(draft.shape))
        if not fits or not last or self._users(node, flow) > 1:
            return None
        self._give(draft, "bias", value)
        return flow

    def _users(self, node: Node, flow: Flow) -> int:
        """How many operations read what a bias is added to."""
        for ref in node.inputs:
            if self.values[ref] is flow:
                return len(self.graph.users[ref.node])
        return 2

    def _scaled(self, node: Node) -> _Value:
        pair = self._pair(node)
        if pair is None or not isinstance(pair[1], Held) or pair[1].view is None:
            return None
        flow, held = pair
        made = self._draft("scale", "", node, [flow])
        self._give(self.drafts[made], "weight", held)
        self.drafts[made].shape = self.drafts[made].slots["weight"][1]
        return Flow(made)

    def _chained(self, node: Node) -> _Value:
        """A vector put together from vectors of the model, and from zeros."""
        values = [self.values[ref] for ref in node.inputs]
        if not any(self._held(value) is not None for value in values):
            return None
        pieces = []
        for value, ref in zip(values, node.inputs, strict=True):
            shape = self.graph.spec(ref).shape
            if len(shape) != 1 or isinstance(value, Flow | Chain):
                return None
            held = self._held(value)
            pieces.append(Piece("", shape, (1,)) if held is None else _piece(held))
        return Chain(tuple(pieces))

    def _looked_up(self, node: Node) -> _Value:
        held = self._held(self._at(node, 0))
        if held is None or held.view is None:
            return None
        flows = [f for ref in node.inputs[1:] if (f := self._flow(self.values[ref], 0)) is not None]
        made = self._draft("lookup", "", node, flows)
        self._give(self.drafts[made], "weight", held)
        self.drafts[made].shape = self.drafts[made].slots["weight"][1]
        return Flow(made)


_JOINS: Mapping[str, str] = {"baddbmm": "bmm", "sub": "add", "stack": "cat", "matmul": "bmm"}


def _through(flow: Flow, node: Node) -> Flow:
    """A stream behind an operation that has no tensors of its own."""
    via = (*flow.via, node.index)
    same = is_pointwise(node.operation) or node.operation == UPDATED
    if same and flow.features is not None and flow.features.shape == node.outputs[0].shape:
        return replace(flow, via=via)
    return Flow(flow.cell, None, flow.rows, via)


def _link(flow: Flow) -> Link:
    return Link(Stream(flow.cell, flow.via), flow.rows)


def _piece(held: Held) -> Piece:
    if held.view is None:
        return Piece(held.address, (), ())
    return piece_of(held.address, held.view)


def _with_zeros(before: Held, written: Held) -> _Value:
    """A vector in which a range was set to zero."""
    whole, zeros = _piece(before), _piece(written)
    if len(whole.shape) != 1 or len(zeros.shape) != 1 or whole.stride != zeros.stride:
        return None
    start, end = zeros.offset, zeros.offset + zeros.numel
    around = ((0, start), (end, whole.numel))
    first, last = (Piece(whole.address, (b - a,), (1,), a) for a, b in around)
    middle = Piece("", zeros.shape, (1,))
    return Chain(tuple(piece for piece in (first, middle, last) if piece.numel))
