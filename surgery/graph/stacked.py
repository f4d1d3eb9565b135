"""Read products of a stack of weights as one product for each of them.

Experts that lie in one tensor are computed by one product with a batch, or one after the other.
Read with lanes, both are as many products: a value with an axis along which each entry was made
by tensors of its own is as many streams, until something reads it as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from surgery.graph.aten import is_pointwise, packet
from surgery.graph.canonical import Canonical
from surgery.graph.flows import Flow, Held, Lanes, Value
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.pieces import KEEPS, MOVES, features_last, layout, moved, piece_of, varies
from surgery.graph.reduce import Reader, cells_of

_PRODUCTS: Mapping[str, tuple[int, int, int | None]] = {"bmm": (0, 1, None), "baddbmm": (1, 2, 0)}


def stacked(one: Graph, other: Graph) -> tuple[Canonical, Canonical] | None:
    """Read two graphs with one product for each weight of a stack.

    Args:
        one: a recorded graph.
        other: another.

    Returns:
        The cells of both; None where neither multiplies with a stack of weights at once.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> class Experts(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up = nn.Parameter(torch.empty(3, 6, 4))
        ...     def forward(self, x):
        ...         return (x @ self.up).sum(0)
        >>> graph = surgery.record(Experts(), torch.zeros(5, 6), train=False)
        >>> [cell.kind for cell in stacked(graph, graph)[0].cells]
        ['input', 'product', 'product', 'product', 'join']
    """
    readers = _Stacked(one), _Stacked(other)
    cells = cells_of(readers[0]), cells_of(readers[1])
    return cells if any(reader.found for reader in readers) else None


@dataclass(frozen=True, slots=True)
class _Folded:
    """A product with a stack of weights side by side, before their results are told apart."""

    node: Node
    data: Flow
    held: Held
    views: tuple[torch.Tensor, ...]


@dataclass(eq=False)
class _Stacked(Reader):
    """One graph on its way to cells, stacks of weights taken apart."""

    found: bool = False
    folds: dict[Ref, torch.Tensor] = field(default_factory=dict)
    folded: dict[int, _Folded] = field(default_factory=dict)
    apart: dict[int, tuple[int, ...]] = field(default_factory=dict)
    wholes: dict[int, tuple[Lanes, Flow]] = field(default_factory=dict)

    def _made(self, node: Node) -> Value | list[Value]:
        name = packet(node.operation)
        if name in _PRODUCTS and (made := self._batched(node, *_PRODUCTS[name])) is not None:
            return made
        lanes = {ref: v for ref in node.inputs if isinstance(v := self.values[ref], Lanes)}
        if not lanes:
            if name in ("stack", "cat") and (joined := self._laid(node, name)) is not None:
                return joined
            self._note(node, name)
            plain = super()._made(node)
            several = plain if isinstance(plain, list) else [plain]
            parted = [self._parted(value) for value in several]
            return parted if isinstance(plain, list) else parted[0]
        if name in MOVES and len(node.inputs) == 1:
            return self._carried(node, lanes[node.inputs[0]])
        if name == "sum" and (summed := self._summed(node)) is not None:
            return summed
        if is_pointwise(node.operation) and (each := self._each(node, lanes)) is not None:
            return each
        with self._taken({ref: self._flow(value, node.index) for ref, value in lanes.items()}):
            return super()._made(node)

    def _flow(self, value: Value, node: int) -> Flow | None:
        if not isinstance(value, Lanes):
            return super()._flow(value, node)
        if id(value) not in self.wholes:
            whole = Flow(self._join("cat", self.graph.nodes[node], list(value.flows)))
            # The lanes are kept with it: no other value may get their id.
            self.wholes[id(value)] = value, whole
        return self.wholes[id(value)][1]

    @contextmanager
    def _taken(self, values: Mapping[Ref, Value]) -> Iterator[None]:
        """Let what an operation reads be something else, once."""
        before = {ref: self.values[ref] for ref in values}
        self.values.update(values)
        try:
            yield
        finally:
            self.values.update(before)

    def _note(self, node: Node, name: str) -> None:
        """Keep the layout of a weight that is copied side by side."""
        alone = name in MOVES and len(node.inputs) == 1
        value = self.values[node.inputs[0]] if alone else None
        if isinstance(value, Held) and value.view is not None and moved(node, value.view) == [None]:
            self.folds[Ref(node.index)] = value.view

    def _carried(self, node: Node, lanes: Lanes) -> Value | list[Value]:
        """Lanes behind an operator that moves numbers; one of them where it is taken out."""
        if packet(node.operation) in KEEPS:
            return lanes
        shape, count = self.graph.spec(node.inputs[0]).shape, len(lanes.flows)
        step = layout(shape).stride(lanes.axis)
        found: list[Value] = []
        for place, view in enumerate(moved(node, layout(shape))):
            run = None if view is None else _run(view, step, count)
            if run is None:
                found.append(self._flow(lanes, node.index))
                continue
            axis, first, size = run
            flows = [self._shown(node, f, place) for f in lanes.flows[first : first + size]]
            found.append(flows[0] if axis is None else Lanes(tuple(flows), axis))
        return found

    def _shown(self, node: Node, flow: Flow, place: int) -> Flow:
        if flow.features is None:
            return flow
        view = moved(node, flow.features)[place]
        return replace(flow, features=view, rows=self._rows(flow) if view is None else None)

    def _each(self, node: Node, lanes: Mapping[Ref, Lanes]) -> Value:
        """A pointwise operation, lane by lane."""
        ends = {v.axis - len(self.graph.spec(ref).shape) for ref, v in lanes.items()}
        counts = {len(value.flows) for value in lanes.values()}
        if len(ends) > 1 or len(counts) > 1:
            return None
        (end,), (count,) = ends, counts
        axis, made = len(node.outputs[0].shape) + end, []
        if axis < 0 or node.outputs[0].shape[axis] != count:
            return None
        for number in range(count):
            with self._taken({ref: self._lane(ref, end, number, count) for ref in node.inputs}):
                value = super()._made(node)
            if not isinstance(value, Flow):
                return None
            made.append(value)
        return Lanes(tuple(made), axis)

    def _lane(self, ref: Ref, end: int, number: int, count: int) -> Value:
        """What one lane reads of a value; the axis is counted from the end."""
        value, shape = self.values[ref], self.graph.spec(ref).shape
        axis = len(shape) + end
        if axis < 0 or shape[axis] != count:
            return value
        if isinstance(value, Lanes):
            return value.flows[number] if value.axis == axis else self._flow(value, ref.node)
        if isinstance(value, Flow) and value.features is not None:
            if value.features.shape != shape:
                return replace(value, features=None, rows=self._rows(value))
            view = value.features.select(axis, number).unsqueeze(axis)
            return replace(value, features=view.expand(value.features.shape))
        if isinstance(value, Held) and value.view is not None and value.view.shape == shape:
            return replace(value, view=value.view.select(axis, number).unsqueeze(axis))
        return value

    def _summed(self, node: Node) -> Value:
        """A sum over lanes, and over nothing else."""
        lanes, rank = self.values[node.inputs[0]], len(self.graph.spec(node.inputs[0]).shape)
        axes = node.arguments[1] if len(node.arguments) > 1 else None
        if not isinstance(lanes, Lanes) or not isinstance(axes, Sequence) or len(axes) != 1:
            return None
        over = axes[0] % rank == lanes.axis
        return Flow(self._join("add", node, list(lanes.flows))) if over else None

    def _laid(self, node: Node, name: str) -> Value:
        """Streams laid side by side along an axis that none of them had."""
        flows = [value for ref in node.inputs if isinstance(value := self.values[ref], Flow)]
        shape = node.outputs[0].shape
        axis = (node.arguments[1] if len(node.arguments) > 1 else 0) % len(shape)
        sizes = {self.graph.spec(ref).shape[axis : axis + 1] for ref in node.inputs}
        if name == "cat" and sizes != {(1,)}:
            return None
        if len(flows) < 2 or len(flows) != len(node.inputs) or len(flows) != shape[axis]:
            return None
        made = []
        for flow in flows:
            view = flow.features
            if view is not None:
                view = (view.unsqueeze(axis) if name == "stack" else view).expand(shape)
            made.append(replace(flow, features=view))
        return Lanes(tuple(made), axis)

    def _batched(self, node: Node, first: int, second: int, base: int | None) -> Value:
        """A product with as many weights as its batch has entries."""
        one, other = self._at(node, first), self._at(node, second)
        if self._held(one) is None and self._held(other) is None:
            return self._contracted(node, first, second) if base is None else None
        if isinstance(other, Held) and node.arguments[second] in self.folds:
            return self._beside(node, one, other, second) if base is None else None
        turned = self._held(other) is not None
        held, place = (self._held(other), first) if turned else (self._held(one), second)
        if held is None or held.view is None or held.view.dim() != 3 or not varies(held.view):
            return None
        if dict(node.keywords).keys() & {"alpha", "beta"}:
            return None
        view = held.view.transpose(-1, -2) if turned else held.view
        axis, shape = (2 if turned else 1), node.outputs[0].shape
        bias = self._at(node, base)
        if base is not None and not _is_bias(bias, axis, shape):
            return None
        features = features_last((1, *shape[1:]), axis).expand(shape)
        made = []
        for number in range(shape[0]):
            data = self._lane(node.arguments[place], -3, number, shape[0])
            if not isinstance(data, Flow):
                return None
            lane = self._product(node, data, held, view.select(0, number), None, axis)
            if not isinstance(lane, Flow):
                return None
            if base is not None:
                own = self._lane(node.arguments[base], -3, number, shape[0])
                self._give(self.drafts[lane.cell], "bias", own)
            made.append(replace(lane, features=features))
        self.found = True
        return Lanes(tuple(made), 0)

    def _contracted(self, node: Node, first: int, second: int) -> Value:
        """A sum over lanes, each times something, written as a product of matrices."""
        refs = node.arguments[first], node.arguments[second]
        over = [
            isinstance(value := self.values[ref], Lanes) and value.axis == axis
            for ref, axis in zip(refs, (2, 1), strict=True)
        ]
        if not any(over) or 1 not in node.outputs[0].shape[1:]:
            return None
        count, made = self.graph.spec(refs[0]).shape[2], []
        for number in range(count):
            pair = [
                self._flow(self._lane(ref, end, number, count), node.index)
                for ref, end in zip(refs, (-1, -2), strict=True)
            ]
            flows = [flow for flow in pair if flow is not None]
            made.append(Flow(self._join("mul", node, flows)))
        return Flow(self._join("add", node, made))

    def _beside(self, node: Node, data: Value, held: Held, second: int) -> Value:
        """A product with weights side by side: one for now, with a piece for each of them."""
        view, shape = self.folds[node.arguments[second]].squeeze(), node.outputs[0].shape
        inner = self.graph.spec(node.arguments[second]).shape[-2]
        if not isinstance(data, Flow) or view.dim() != 3 or view.shape[0] != inner:
            return None
        if view.shape[1] * view.shape[2] != shape[2] or min(view.shape[1:]) < 2:
            return None
        made = self._draft("product", "", node, [data])
        views = tuple(each.t() for each in view.unbind(1))
        draft, pieces = self.drafts[made], tuple(piece_of(held.address, each) for each in views)
        draft.features, draft.shape = shape[2], (shape[2], inner)
        draft.slots["weight"] = (pieces, draft.shape)
        self.folded[made] = _Folded(node, data, held, views)
        self.found = True
        return Flow(made, features_last(shape, 2))

    def _parted(self, value: Value) -> Value:
        """Lanes in place of a stream in which the results of several weights have an axis."""
        if not isinstance(value, Flow) or value.features is None or value.cell not in self.folded:
            return value
        known, view = self.folded[value.cell], value.features
        count, width = len(known.views), known.views[0].shape[0]
        axes = [n for n, size in enumerate(view.shape) if (size, view.stride(n)) == (count, width)]
        if len(axes) != 1 or view.storage_offset() % (count * width):
            return value
        if value.cell not in self.apart:
            products = [
                self._product(known.node, known.data, known.held, each, None, 2)
                for each in known.views
            ]
            cells = (each.cell for each in products if isinstance(each, Flow))
            self.apart[value.cell] = tuple(cells)
            for cell in self.apart[value.cell]:
                self.drafts[cell].features = width
        (axis,) = axes
        lane = view.select(axis, 0).unsqueeze(axis).expand(view.shape)
        flows = [Flow(cell, lane, None, value.via) for cell in self.apart[value.cell]]
        return Lanes(tuple(flows), axis)


def _is_bias(value: Value, axis: int, shape: tuple[int, ...]) -> bool:
    """Whether a parameter has one number for each feature of each lane, and no more."""
    if not isinstance(value, Held) or value.role != "parameter" or value.view is None:
        return False
    wanted = tuple(size if n in (0, axis) else 1 for n, size in enumerate(shape))
    return tuple(value.view.shape) == wanted and value.view.stride(0) > 0


def _run(view: torch.Tensor, step: int, count: int) -> tuple[int | None, int, int] | None:
    """Where a view has an axis of its layout: the axis, its first entry and how many it has.

    Args:
        view: of a contiguous layout.
        step: the stride of an axis of that layout.
        count: its size.

    Returns:
        No axis, an entry and one where a single entry is left; None where entries are mixed.

    Example:
        >>> import torch
        >>> stack = torch.empty(5, 3, 4)
        >>> _run(stack.permute(1, 0, 2)[1:], 4, 3), _run(stack[:, 2], 4, 3)
        ((0, 1, 2), (None, 2, 1))
        >>> _run(stack.view(15, 4), 4, 3) is None
        True
    """
    axis, size, inner = None, 1, 0
    for place, (length, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        if length == 1 or stride % (step * count) == 0:
            continue
        if stride == step and axis is None:
            axis, size = place, length
        elif stride < step:
            inner += stride * (length - 1)
        else:
            return None
    offset = int(view.storage_offset())
    first = offset // step % count
    if offset % step + inner >= step or first + size > count:
        return None
    return axis, first, size
