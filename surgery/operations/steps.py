"""Follow a forward pass operation by operation: note what some made, and put in something else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from surgery.graph.aten import packet
from surgery.graph.extras import Extra
from surgery.graph.graph import Graph, Node
from surgery.graph.operators import Call, results
from surgery.graph.pieces import MOVES
from surgery.graph.recorder import UPDATED

# What goes on in the place of a result, of what was noted before.
Planted: TypeAlias = Callable[[Mapping[int, torch.Tensor]], torch.Tensor]


class OutOfStepError(RuntimeError):
    """A forward pass did something else than in its recording."""


class Steps:
    """Which node of a recorded graph runs now.

    Args:
        graph: the recording.
        noted: nodes whose results are wanted.
        planted: by node, what goes on in the place of its result.
    """

    def __init__(
        self, graph: Graph, noted: Iterable[int], planted: Mapping[int, Planted] | None = None
    ) -> None:
        self.ahead = [
            node
            for node in graph.operations
            if node.operation != UPDATED and packet(node.operation) not in MOVES
        ]
        self.noted, self.planted = frozenset(noted), dict(planted or {})
        self.at = 0
        self.seen: dict[int, torch.Tensor] = {}
        # By ``id`` of what was noted: where the slopes of its numbers begin.
        self.edges: dict[int, GradientEdge] = {}
        self.waiting: dict[int, tuple[int, torch.Tensor]] = {}
        self.entries: dict[int, list[tuple[int, int]]] = {}
        self.entered: dict[int, torch.Tensor] = {}
        self.instead: dict[int, tuple[int, Node]] = {}
        self.left_out: frozenset[int] = frozenset()

    def around(self, found: Iterable[Extra], left_out: Iterable[Extra]) -> None:
        """Note what goes into operations and what comes out; leave some of them out.

        Args:
            found: their results are noted in ``seen``, and in ``entered`` what they get, or what
                another graph's operation makes of it.
            left_out: those of them in the place of whose result that goes on.
        """
        for each in found:
            first, place = each.entry
            self.entries.setdefault(first, []).append((place, each.exit))
            self.noted |= {each.exit}
            if each.instead is not None:
                self.instead[each.exit] = place, each.instead
        self.left_out = frozenset(each.exit for each in left_out)

    def before(self, call: Call) -> None:
        """Look at results that get read: what autograd knows of them, it knows by now."""
        for tensor in call.given:
            number, held = self.waiting.get(id(tensor), (-1, None))
            if held is tensor:
                del self.waiting[id(tensor)]
                self._traced(number, tensor)
        if self.entries and packet(call.known.name) not in MOVES and self.at < len(self.ahead):
            for place, number in self.entries.get(self.ahead[self.at].index, ()):
                self.entered[number] = call.given[place].detach().clone()

    def after(self, call: Call, result: Any) -> Any:
        """Note the result of an operation, or put another in its place.

        Raises:
            OutOfStepError: the recording has another operation in this place.
        """
        name = call.known.name
        if packet(name) in MOVES:
            return result
        node = self.ahead[self.at] if self.at < len(self.ahead) else None
        if node is None or node.operation != name:
            raise OutOfStepError(f"{name} runs where the recording has something else")
        self.at += 1
        number = node.index
        if number in self.planted:
            result = _put(call, result, self.planted[number](self.seen))
        if number in self.noted or number in self.planted:
            self.seen[number] = results(result)[0].detach().clone()
            if number in self.instead:
                place, other = self.instead[number]
                self.entered[number] = _numbered(call, place, self.entered[number], other)
            if number in self.left_out:
                result = _put(call, result, self.entered[number])
            first = results(result)[0]
            self.waiting[id(first)] = number, first
        return result

    def close(self) -> None:
        """Look at results that nothing read."""
        for number, tensor in self.waiting.values():
            self._traced(number, tensor)
        self.waiting.clear()

    def _traced(self, number: int, tensor: torch.Tensor) -> None:
        if not tensor.requires_grad:
            return
        if number in self.planted:
            # It stands for what another model made: nothing in front of it has a say.
            tensor.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
        else:
            self.edges[id(self.seen[number])] = get_gradient_edge(tensor)


def _numbered(call: Call, place: int, value: torch.Tensor, other: Node) -> torch.Tensor:
    """What an operation makes of a value with the numbers of another graph's."""
    old = call.given[place]
    given = itertools.zip_longest(call.args, other.arguments)
    args = [value if own is old else own if _is_tensor(own) else number for own, number in given]
    numbers = {name: number for name, number in other.keywords if isinstance(number, int | float)}
    return results(call.func(*args, **{**call.kwargs, **numbers}))[0]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _put(call: Call, result: Any, value: torch.Tensor) -> Any:
    """Another value in the place of a result, in its form where that is possible."""
    first, *others = results(result)
    made = fitted(value, first)
    if made.shape == first.shape:
        first.detach().copy_(made)
        return result
    if others or not call.known.returns_new:
        raise OutOfStepError(f"{call.known.name} writes a result of another shape in place")
    return made.to(first.dtype, copy=True)


def fitted(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value in the layout of another: features first or last, axes of one entry or none.

    Raises:
        OutOfStepError: it has another number of axes, or none of its sizes.
    """
    if [size for size in value.shape if size > 1] == [size for size in like.shape if size > 1]:
        return value.reshape(like.shape)
    for form in turned(value):
        if form.shape == like.shape:
            return form
    same = value.numel() == like.numel()
    if same and value.dim() != like.dim() == 2:
        axis = _features(value, like.shape[-1])
        return value.movedim(axis, -1).reshape(like.shape)
    if same and like.dim() != value.dim() == 2:
        axis = _features(like, value.shape[-1])
        return value.reshape(like.movedim(axis, -1).shape).movedim(-1, axis)
    features = 1 if value.dim() == 4 and like.dim() == 4 else -1
    if value.dim() != like.dim() or value.shape[features] != like.shape[features]:
        raise OutOfStepError(f"{tuple(value.shape)} does not fit {tuple(like.shape)}")
    return value


def _features(value: torch.Tensor, count: int) -> int:
    """The axis of features: behind the samples in maps, in sequences the last.

    Raises:
        OutOfStepError: no axis has that many, or there are none.
    """
    axes = [axis for axis in ((1, -1) if value.dim() == 4 else (-1, 1)) if value.dim() > 2]
    found = [axis for axis in axes if value.shape[axis] == count]
    if not found:
        raise OutOfStepError(f"{tuple(value.shape)} has no axis of {count} features")
    return found[0]


def turned(value: torch.Tensor) -> list[torch.Tensor]:
    """A value in the layouts that the same numbers may have: features first or last, or as rows."""
    forms = [value.movedim(1, -1), value.movedim(-1, 1)] if value.dim() > 2 else []
    if value.dim() == 4:
        forms += [value.flatten(2), value.flatten(2).transpose(1, 2), value.flatten(1, 2)]
    return forms
