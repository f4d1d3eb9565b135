"""Read a graph into cells: take away what moves numbers, and name what has tensors of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical
from surgery.graph.draft import Link, finished
from surgery.graph.flows import (
    Chain,
    Flow,
    Held,
    Made,
    Value,
    held_piece,
    link_of,
    through,
    with_zeros,
)
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.identities import is_identity
from surgery.graph.notes import Notes
from surgery.graph.pieces import (
    MOVES,
    Piece,
    features_last,
    layout,
    moved,
    piece_of,
    varies,
)
from surgery.graph.recorder import UPDATED
from surgery.graph.skeleton import is_floating

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
    return cells_of(Reader(graph))


def cells_of(reader: Reader) -> Canonical:
    """Read the graph of a reader from its first node to its outputs."""
    graph = reader.graph
    for node in graph.nodes:
        reader.read(node)
    ends = [
        (leaf.path, leaf.spec, reader.link(leaf.source) if leaf.source is not None else None)
        for leaf in graph.leaves
    ]
    return finished(graph, reader.drafts, ends)


class Reader(Notes):
    """One graph on its way to cells."""

    def read(self, node: Node) -> None:
        """Give a value to everything that a node makes."""
        if node.role != "operation":
            self.values[Ref(node.index)] = self._source(node)
            return
        self._fold(node)
        made = self._made(node)
        for place in range(len(node.outputs)):
            value = made if not isinstance(made, list) else made[min(place, len(made) - 1)]
            self.values[Ref(node.index, place)] = value

    def link(self, ref: Ref) -> Link | None:
        """What flows where a value is read; None for constants."""
        value = self.values[ref]
        flow = self._flow(value, ref.node) if value is not None else None
        return None if flow is None else link_of(flow)

    def _source(self, node: Node) -> Value:
        floating = is_floating(node.outputs[0].dtype)
        if node.role == "input":
            return Flow(self._draft("input", node.addresses[0] if node.addresses else "", node))
        if node.role == "parameter" or (node.role == "buffer" and floating and node.addresses):
            self.shapes[node.addresses[0]] = node.outputs[0].shape
            return Held(node.addresses[0], node.role, layout(node.outputs[0].shape))
        return None

    def _made(self, node: Node) -> Value | list[Value]:
        name = packet(node.operation).rstrip("_") or packet(node.operation)
        if name.startswith(_CREATES) or name.endswith("_like"):
            return None
        if name in MOVES and len(node.inputs) == 1:
            return self._moved(node)
        if node.inputs and is_identity(node, self.graph.spec(node.inputs[0]).shape):
            return self.values[node.inputs[0]]
        if node.operation == UPDATED:
            return self._updated(node)
        if name in ("zero", "fill") and isinstance(self._at(node, 0), Held):
            held = self._at(node, 0)
            zero = name == "zero" or node.arguments[1:2] in ((0,), ("0",), (0.0,))
            return replace(held, zeroed=True) if isinstance(held, Held) and zero else None
        handler = self._handler(name)
        made = handler(node) if handler is not None else None
        return made if made is not None else self._plain(node, name)

    def _handler(self, name: str) -> Callable[[Node], Value] | None:
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
            "sub": self._centred,
            "div": self._divided,
            "addcmul": self._scaled_and_added,
            "cat": self._chained,
            "embedding": self._looked_up,
            "index": self._looked_up,
        }.get(name)

    def _moved(self, node: Node) -> Value | list[Value]:
        value = self.values[node.inputs[0]]
        if isinstance(value, Made):
            return value
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

    def _updated(self, node: Node) -> Value:
        """A tensor after something was written into its memory through a view."""
        before, written = (self.values[ref] for ref in node.inputs)
        if isinstance(before, Held) and isinstance(written, Held) and written.zeroed:
            return with_zeros(before, written)
        if before is None:
            return through(written, node) if isinstance(written, Flow) else written
        if written is None:
            return before
        if isinstance(before, Chain) or isinstance(written, Chain):
            return None
        return self._plain(node, "updated")

    def _plain(self, node: Node, name: str) -> Value:
        """An operation without tensors of its own: one stream goes on, several are joined."""
        if (alone := self._alone(node)) is not None:
            return alone
        flows = [
            flow
            for ref in node.inputs
            if (flow := self._flow(self.values[ref], node.index)) is not None
        ]
        if any(words in name for words in _ATTENTIONS) and len(flows) >= 3:
            weights = Flow(self._join("bmm", node, flows[:2]), via=(node.index,))
            return Flow(self._join("bmm", node, [weights, flows[2]]))
        return self._joined(node, name, flows)

    def _alone(self, node: Node) -> Made | None:
        """What an operation makes of one parameter and of constants, or None."""
        values = [self.values[ref] for ref in node.inputs]
        known = [v for v in values if isinstance(v, Made) or self._held(v) is not None]
        others = [v for v in values if isinstance(v, Flow | Chain)]
        addresses = {v.address for v in known if isinstance(v, Held | Made)}
        if others or len(addresses) != 1:
            return None
        via = [number for v in known if isinstance(v, Made) for number in v.via]
        return Made(addresses.pop(), (*dict.fromkeys(via), node.index))

    def _joined(self, node: Node, name: str, flows: list[Flow]) -> Value:
        sources = {(flow.cell, self._rows(flow)) for flow in flows}
        if not flows:
            return None
        if len(sources) == 1:
            longest = max(flows, key=lambda flow: len(flow.via))
            return through(longest, node)
        return Flow(self._join(name, node, flows))

    def _join(self, name: str, node: Node, flows: list[Flow]) -> int:
        return self._draft("join", _JOINS.get(name, name), node, flows)

    def _flow(self, value: Value, node: int) -> Flow | None:
        """A value as a stream; a parameter by itself is a cell of its own."""
        if isinstance(value, Flow):
            if value.features is None:
                return value
            return Flow(value.cell, None, self._rows(value), value.via)
        if isinstance(value, Held) and value.role == "parameter" and not value.zeroed:
            return Flow(self._parameter(value, node))
        if isinstance(value, Made):
            whole = Held(value.address, "parameter", layout(self.shapes[value.address]))
            return Flow(self._parameter(whole, node), via=value.via)
        if isinstance(value, Chain):
            return Flow(self._draft("value", "", self.graph.nodes[node]))
        return None

    def _parameter(self, held: Held, node: int) -> int:
        piece = held_piece(held)
        if piece not in self.known:
            shape = tuple(size for size in piece.shape if size > 1)
            made = self._draft("value", "", self.graph.nodes[node])
            self.drafts[made].shape = shape
            self.drafts[made].slots["weight"] = ((piece,), shape)
            self.known[piece] = made
        return self.known[piece]

    def _matrix(self, node: Node, first: int, second: int, bias: int | None) -> Value:
        one, other = self._at(node, first), self._at(node, second)
        if isinstance(one, Flow) and (held := self._held(other)) is not None:
            view = held.view.transpose(-1, -2) if held.view is not None else None
            axis = len(node.outputs[0].shape) - 1
            return self._product(node, one, held, view, self._at(node, bias), axis)
        if isinstance(other, Flow) and (held := self._held(one)) is not None and bias is None:
            axis = len(node.outputs[0].shape) - 2
            return self._product(node, other, held, held.view, None, axis)
        return None

    def _linear(self, node: Node) -> Value:
        data, held = self._at(node, 0), self._held(self._at(node, 1))
        if not isinstance(data, Flow) or held is None:
            return None
        axis = len(node.outputs[0].shape) - 1
        return self._product(node, data, held, held.view, self._at(node, 2), axis)

    def _convolution(self, node: Node) -> Value:
        data, held = self._at(node, 0), self._filter(node)
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

    def _filter(self, node: Node) -> Held | None:
        """The weight of a convolution, also where it was standardised first."""
        value = self._at(node, 1)
        if isinstance(value, Made):
            shape = self.shapes[value.address]
            whole = shape == self.graph.spec(node.inputs[1]).shape
            return Held(value.address, "parameter", layout(shape)) if whole else None
        return self._held(value)

    def _product(
        self,
        node: Node,
        data: Flow,
        held: Held,
        view: torch.Tensor | None,
        bias: Value,
        axis: int,
    ) -> Value:
        if isinstance(bias, Flow | Made) or view is None:
            return None
        if view.dim() == 3 and "convolution" not in node.operation and not varies(view):
            view = view.select(0, 0)
        made = self._draft("product", "", node, [data])
        draft, shape = self.drafts[made], node.outputs[0].shape
        draft.features = shape[axis]
        draft.slots["weight"] = ((piece_of(held.address, view),), tuple(view.shape))
        draft.shape = tuple(view.shape)
        if "convolution" in node.operation and node.arguments[6]:
            draft.name = "transposed"
        self._give(draft, "bias", bias)
        return Flow(made, features_last(shape, axis))

    def _norm(self, node: Node) -> Value:
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

    def _standardised(self, node: Node) -> Value:
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
        if len(flows) != 1 or len(held) != 1 or not isinstance(held[0], Held | Chain):
            return None
        return flows[0], held[0]

    def _added(self, node: Node) -> Value:
        """A bias that is added by itself."""
        if (written := self._written_out(node, "shift")) is not None:
            return self._shifted(*written)
        pair = self._pair(node)
        if pair is None or dict(node.keywords).get("alpha", 1) != 1:
            return None
        flow, value = pair
        draft = self.drafts[flow.cell]
        if isinstance(value, Held) and self._lacks(node, flow, value, "bias"):
            self._give(draft, "bias", value)
            return flow
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

    def _scaled(self, node: Node) -> Value:
        for form in ("scale", "inverse"):
            written = self._written_out(node, form)
            spread = None if written is None else self._spread(node, *written)
            if spread is not None:
                return spread
        pair = self._pair(node)
        if pair is None or not isinstance(pair[1], Held) or pair[1].view is None:
            return None
        flow, held = pair[0], pair[1]
        if self._lacks(node, flow, held, "weight"):
            self._give(self.drafts[flow.cell], "weight", held)
            return flow
        made = self._draft("scale", "", node, [flow])
        self._give(self.drafts[made], "weight", held)
        self.drafts[made].shape = self.drafts[made].slots["weight"][1]
        return Flow(made)

    def _chained(self, node: Node) -> Value:
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
            pieces.append(Piece("", shape, (1,)) if held is None else held_piece(held))
        return Chain(tuple(pieces))

    def _scaled_and_added(self, node: Node) -> Value:
        """A scale and a bias in one operation, of what is then added to something else."""
        base, *pair = (self._at(node, place) for place in (0, 1, 2))
        flow = next((value for value in pair if isinstance(value, Flow)), None)
        held = next((value for value in pair if self._held(value) is not None), None)
        if flow is None or not isinstance(held, Held) or held.view is None:
            return None
        made = self._draft("scale", "", node, [flow])
        draft = self.drafts[made]
        self._give(draft, "weight", held)
        draft.shape = draft.slots["weight"][1]
        if self._held(base) is not None and self._give(draft, "bias", base):
            return Flow(made)
        into = self._flow(base, node.index)
        return Flow(made) if into is None else Flow(self._join("add", node, [into, Flow(made)]))

    def _looked_up(self, node: Node) -> Value:
        held = self._held(self._at(node, 0))
        if held is None or held.view is None:
            return None
        flows = [f for ref in node.inputs[1:] if (f := self._flow(self.values[ref], 0)) is not None]
        if not flows:
            return self._alone(node)
        made = self._draft("lookup", "", node, flows)
        self._give(self.drafts[made], "weight", held)
        self.drafts[made].shape = self.drafts[made].slots["weight"][1]
        return Flow(made)


_JOINS: Mapping[str, str] = {"baddbmm": "bmm", "sub": "add", "stack": "cat", "matmul": "bmm"}
