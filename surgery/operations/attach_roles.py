"""What each axis of the values in a graph holds: samples, places or channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from surgery.graph.aten import CONTRACTIONS, packet
from surgery.graph.axes import across
from surgery.graph.axis_rules import SPLITTING
from surgery.graph.graph import Graph, Leaf, Node, Ref
from surgery.graph.skeleton import holds_features
from surgery.graph.walk import Mixing, ancestors, mixing

Role: TypeAlias = Literal["samples", "places", "channels"]

NORMS = frozenset(
    {
        *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"),
        *("_native_batch_norm_legit_no_training", "_batch_norm_no_update", "native_group_norm"),
    }
)
LAST_NORMS = frozenset({"native_layer_norm", "_fused_rms_norm"})

_ATTENDING = frozenset({"_softmax", "softmax", "_safe_softmax"})


@dataclass(frozen=True, slots=True)
class _Part:
    """A factor of an axis; its origin says where it comes from, and leads to its role."""

    size: int
    origin: int


_Axes: TypeAlias = tuple[tuple[_Part, ...], ...]


@dataclass
class Roles:
    """The roles of axes, from the input on: making it walks through the whole graph.

    Samples are the first axis of the inputs. What the first layer sums over are channels, and
    what it leaves are places; so are the axes that indices have where their rows are looked up.
    Layers make channels of channels, and places of places alone. Views that merge or split axes
    are seen through.

    Args:
        graph: the recorded forward pass.

    Attributes:
        crossing: products that sum over samples alone, which samples never go through.
        stems: the first layers: over how many entries they sum, how many they make, and the
            sizes of the places.
    """

    graph: Graph
    crossing: list[int] = field(default_factory=list)
    stems: list[tuple[int, int, frozenset[int]]] = field(default_factory=list)
    _axes: dict[Ref, _Axes] = field(default_factory=dict)
    _known: dict[int, Role | None] = field(default_factory=dict)
    _norms: dict[int, frozenset[Role]] = field(default_factory=dict)
    _sure: set[int] = field(default_factory=set)
    _origins: int = 0

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            if node.role == "input":
                shape = node.outputs[0].shape
                samples = self._part(shape[0], "samples") if shape else ()
                rest = (self._part(size) for size in shape[1:])
                self._axes[Ref(node.index)] = (samples, *rest) if shape else ()
            elif any(ref in self._axes for ref in node.inputs) and node.outputs:
                self._operate(node)

    def of(self, ref: Ref) -> tuple[frozenset[Role | None], ...] | None:
        """The roles of every axis of a value; None among them where they are not known.

        An axis of one entry has none.
        """
        axes = self._axes.get(ref)
        return None if axes is None else tuple(self._roles(parts) for parts in axes)

    def channels(self, leaf: Leaf) -> set[int]:
        """The axes of an output that hold channels."""
        roles = None if leaf.source is None else self.of(leaf.source)
        return {axis for axis, held in enumerate(roles or ()) if axis and "channels" in held}

    def places(self, leaf: Leaf) -> set[int]:
        """The axes of an output that hold places alone."""
        roles = None if leaf.source is None else self.of(leaf.source)
        return {axis for axis, held in enumerate(roles or ()) if axis and held == {"places"}}

    def is_confirmed(self, leaf: Leaf) -> bool:
        """Whether what cannot work on places agrees: normalisations, kernels, tables of rows."""
        above = _above(self.graph, leaf)
        norms = [self._norms[index] for index in self._norms if index in above]
        against = sum("channels" not in held for held in norms)
        sure = len(norms) > against or bool(self._sure & above)
        return sure and not against

    def is_contradicted(self, leaf: Leaf) -> bool:
        """Whether normalisations on the way to an output work along places."""
        above = _above(self.graph, leaf)
        return any("channels" not in self._norms[i] for i in self._norms if i in above)

    def crosses(self, leaf: Leaf) -> int | None:
        """A product on the way to an output that sums over samples, if there is one."""
        above = _above(self.graph, leaf)
        return next((index for index in self.crossing if index in above), None)

    def _part(self, size: int, role: Role | None = None) -> tuple[_Part, ...]:
        if size == 1:
            return ()
        self._origins += 1
        if role is not None:
            self._known[self._origins] = role
        return (_Part(size, self._origins),)

    def _role(self, part: _Part) -> Role | None:
        return self._known.get(part.origin)

    def _roles(self, parts: Iterable[_Part]) -> frozenset[Role | None]:
        return frozenset(self._role(part) for part in parts)

    def _operate(self, node: Node) -> None:
        name = packet(node.operation)
        if name == "embedding":
            self._look_up(node)
            return
        if name in SPLITTING:
            self._view(node)
            return
        for ref in node.inputs[:1]:
            self._note_norm(node, name, ref)
        mixed = mixing(self.graph, node)
        made: list[tuple[_Part, ...]] | None = None
        shape = node.outputs[0].shape
        if mixed is not None:
            # What the layer sums over says what its input holds, and that what is left.
            role = self._mixed(node, name, mixed)
            made = self._carried(node, shape)
            if mixed.axis < len(made):
                made[mixed.axis] = self._part(shape[mixed.axis], role)
        elif name in CONTRACTIONS:
            self._note_crossing(node)
        for output, spec in enumerate(node.outputs):
            axes = made if made is not None else self._carried(node, spec.shape)
            if name in _ATTENDING:
                self._ask(node, axes)
            self._axes[Ref(node.index, output)] = tuple(axes)

    def _ask(self, node: Node, axes: list[tuple[_Part, ...]]) -> None:
        """What attends to places are places; learnt questions look like the weights of a layer."""
        last = len(axes) - 1
        over = node.arguments[1] % len(axes) if axes and len(node.arguments) > 1 else -1
        if last > 0 and over == last and self._roles(axes[last]) == {"places"}:
            size = math.prod(part.size for part in axes[last - 1])
            if self._roles(axes[last - 1]) == {"channels"}:
                axes[last - 1] = self._part(size, "places")

    def _carried(self, node: Node, shape: tuple[int, ...]) -> list[tuple[_Part, ...]]:
        """The axes that an operation passes on."""
        made: list[tuple[_Part, ...]] = [() for _ in shape]
        for position, ref in enumerate(node.inputs):
            for axis, parts in enumerate(self._axes.get(ref, ())):
                place = across(self.graph, node, position, axis) if parts else None
                if place is None or place >= len(shape):
                    continue
                if not made[place] or None in self._roles(made[place]):
                    fitted = self._fitted(parts, shape[place])
                    if not made[place] or None not in self._roles(fitted):
                        made[place] = fitted
        return made

    def _fitted(self, parts: tuple[_Part, ...], size: int) -> tuple[_Part, ...]:
        """The same axis with another number of entries: cut, padded, joined or pooled."""
        if math.prod(part.size for part in parts) == size:
            return parts
        roles = self._roles(parts)
        if len(parts) == 1 and size > 1:
            return (_Part(size, parts[0].origin),)
        return self._part(size, next(iter(roles)) if len(roles) == 1 else None)

    def _look_up(self, node: Node) -> None:
        indices = self._axes.get(node.inputs[1])
        if indices is None:
            return
        self._settle((part for parts in indices for part in parts), "places")
        width = node.outputs[0].shape[-1]
        self._axes[Ref(node.index)] = (*indices, self._part(width, "channels"))
        self._sure.add(node.index)

    def _settle(self, parts: Iterable[_Part], role: Role) -> None:
        for part in parts:
            self._known.setdefault(part.origin, role)

    def _mixed(self, node: Node, name: str, mixed: Mixing) -> Role | None:
        """The role of the features that a layer makes."""
        if name not in CONTRACTIONS:
            return None
        first, second = CONTRACTIONS[name]
        factors = [node.arguments[place] for place in (first, second)]
        data = factors[1] if factors[0] == mixed.weight else factors[0]
        axes = self._axes.get(data) if isinstance(data, Ref) else None
        if axes is None:
            return None
        spread = "convolution" in name
        last = len(axes) - 1 if data == factors[0] else max(len(axes) - 2, 0)
        summed = axes[1] if spread else axes[last]
        others = [part for parts in axes if parts is not summed for part in parts]
        unknown = [part for part in summed if part.origin not in self._known]
        roles = self._roles(summed)
        if unknown:
            self._settle(summed, "channels")
            self._settle(others, "places")
            left = frozenset(part.size for part in others if self._role(part) == "places")
            self.stems.append((mixed.in_features, mixed.features, left))
        if not summed or unknown or "channels" in roles:
            if spread and any(size > 1 for size in self.graph.spec(mixed.weight).shape[2:]):
                self._sure.add(node.index)
            return "channels"
        return "places" if roles == {"places"} else None

    def _note_norm(self, node: Node, name: str, ref: Ref) -> None:
        axes = self._axes.get(ref)
        if not axes or name not in NORMS | LAST_NORMS:
            return
        if name in LAST_NORMS and len(node.arguments) > 1 and len(node.arguments[1]) != 1:
            return
        roles = self._roles(axes[-1] if name in LAST_NORMS or len(axes) < 2 else axes[1])
        known = frozenset(role for role in roles if role is not None)
        if known:
            self._norms[node.index] = known

    def _note_crossing(self, node: Node) -> None:
        """Note a product of two values of the data that sums over samples alone."""
        for position, ref in enumerate(node.inputs[-2:], len(node.inputs) - 2):
            axes = self._axes.get(ref, ())
            summed = [
                parts
                for axis, parts in enumerate(axes)
                if parts and across(self.graph, node, position, axis) is None
            ]
            if any(self._roles(parts) == {"samples"} for parts in summed):
                self.crossing.append(node.index)

    def _view(self, node: Node) -> None:
        axes = self._axes.get(node.inputs[0])
        if axes is None:
            return
        before, after = self.graph.spec(node.inputs[0]).shape, node.outputs[0].shape
        parts: list[_Part] = []
        for size, held in zip(before, axes, strict=True):
            parts += held or self._part(size)
        self._axes[Ref(node.index)] = self._cut(parts, after) or tuple(() for _ in after)

    def _cut(self, parts: Sequence[_Part], after: tuple[int, ...]) -> _Axes | None:
        """The same entries in axes of other sizes; None where these cut across."""
        queue, made = list(parts), []
        for size in after:
            held: list[_Part] = []
            while size > 1:
                part = queue.pop(0) if queue else _Part(0, 0)
                if part.size and size % part.size == 0:
                    held.append(part)
                    size //= part.size
                elif part.size and part.size % size == 0:
                    role = self._role(part)
                    held += self._part(size, role)
                    queue[:0] = self._part(part.size // size, role)
                    size = 1
                else:
                    return None
            made.append(self._joined(held))
        return tuple(made)

    def _joined(self, parts: Iterable[_Part]) -> tuple[_Part, ...]:
        """The parts of an axis with neighbours of one known role as one."""
        made: list[_Part] = []
        for part in parts:
            role = self._role(part)
            if made and role is not None and self._role(made[-1]) == role:
                made[-1:] = self._part(made[-1].size * part.size, role)
            else:
                made.append(part)
        return tuple(made)


def _above(graph: Graph, leaf: Leaf) -> frozenset[int]:
    if leaf.source is None:
        return frozenset()
    # Rows are looked up by integers, through which the walk back does not go.
    found = ancestors(graph, leaf.source.node) | {leaf.source.node}
    return frozenset(i for i in found if holds_features(graph.nodes[i].outputs[0].dtype))
