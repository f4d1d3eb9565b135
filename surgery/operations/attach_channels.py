"""Which axis of features holds the channels: what is pooled over all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from surgery.errors import AmbiguousHeadError, SurgeryError
from surgery.graph.aten import packet
from surgery.graph.axes import follow
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Leaf, Ref
from surgery.graph.record import record_graph
from surgery.graph.structure import replace_tensors, tensors
from surgery.graph.walk import ancestors, frontier
from surgery.operations.attach_roles import LAST_NORMS, NORMS, Roles
from surgery.survey import Survey

# How many other sizes of the input are tried.
_SIZES = 4


def is_flat(leaf: Leaf) -> bool:
    """Whether features are one vector a sample, perhaps in the form of an image of one pixel."""
    return len(leaf.spec.shape) == 2 or sum(size > 1 for size in leaf.spec.shape[1:]) <= 1


def find_channels(
    model: nn.Module, known: Survey, roles: Roles, leaf: Leaf
) -> tuple[int, tuple[str, ...]]:
    """Find the axis of the channels, and a remark where it is not the one the last layers make.

    The last layers and all before them are asked: those that sum over places (words, pixels)
    make places, not channels. Where they differ, an axis that grows with the input holds places;
    where the input can have no other size, normalisations, kernels and tables of rows decide,
    or a first layer that changes the number of channels while that of the places stays.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        roles: of the axes in one of them.
        leaf: the output in it.

    Raises:
        AmbiguousHeadError: it could be any of several.
    """
    shape, graph = leaf.spec.shape, roles.graph
    if len(shape) == 2:
        said = f"axis 1 of {leaf.path} {list(shape)} holds places: no layer made channels of them"
        return 1, ((said,) if roles.places(leaf) else ())
    near = _feature_axes(graph, leaf) or _norm_axes(graph, leaf) or _joined_axes(graph, leaf)
    made = roles.channels(leaf)
    found = near | made
    if not found and is_flat(leaf):
        found = {axis for axis, size in enumerate(shape) if axis and size > 1}
        # Of channels that were averaged away the places are left.
        if found == roles.places(leaf):
            raise _undecided(leaf, found)
    contradicted = roles.is_contradicted(leaf)
    if len(found) == 1 and not contradicted:
        return found.pop(), ()
    left = found - _growing(model, known.example, graph, leaf) if found else found
    if len(left) != 1 and len(made) == 1 and not contradicted:
        (axis,) = made
        others = {shape[other] for other in found - made}
        plain = any(taken != given and others <= kept for taken, given, kept in roles.stems)
        left = made & left if plain or roles.is_confirmed(leaf) else left
    if len(left) != 1:
        raise _undecided(leaf, left or found)
    (axis,) = left
    return axis, _remarks(leaf, axis, near)


def _remarks(leaf: Leaf, axis: int, near: set[int]) -> tuple[str, ...]:
    if near == {axis}:
        return ()
    others = ", ".join(f"axis {other}" for other in sorted(near - {axis}))
    sizes = list(leaf.spec.shape)
    over = f": layers work along {others} as well, and mix places there" if others else ""
    return (
        f"axis {axis} of {leaf.path} {sizes} holds the channels{over}; channels= says otherwise",
    )


def _undecided(leaf: Leaf, found: set[int]) -> AmbiguousHeadError:
    axes = sorted(found) or list(range(1, len(leaf.spec.shape)))
    shown = ", ".join(map(str, axes)) if found else "any"
    return AmbiguousHeadError(
        "the graph does not show which axis of the features holds the channels",
        where=leaf.path,
        expected="one axis along which the layers make features",
        found=f"{leaf.spec}, where it could be {shown}",
        fix=f"surgery.replace_head(model, ..., attach={leaf.path!r}, channels={axes[-1]})",
    )


def _growing(model: nn.Module, example: Example, graph: Graph, leaf: Leaf) -> set[int]:
    """The axes of an output that get longer where the input does, as far as it can."""
    form = example.in_mode(graph.training)
    given = [tensor for _, tensor in tensors([form.args, dict(form.kwargs)])]
    sizes = dict.fromkeys(size for tensor in given for size in tensor.shape[1:] if size > 1)
    found: set[int] = set()
    for size in list(sizes)[:_SIZES]:
        larger = dataclasses.replace(
            form,
            args=replace_tensors(form.args, partial(_larger, size)),
            kwargs=replace_tensors(dict(form.kwargs), partial(_larger, size)),
            train=None,
        )
        found.update(_longer(model, larger, graph, leaf))
    return found


def _longer(model: nn.Module, example: Example, graph: Graph, leaf: Leaf) -> Iterator[int]:
    try:
        again = record_graph(model, example, train=graph.training, operations=False)
    except SurgeryError:
        # Most models take one number of channels, and some one number of places.
        return
    for other in again.leaves:
        if other.path == leaf.path and len(other.spec.shape) == len(leaf.spec.shape):
            pairs = zip(leaf.spec.shape, other.spec.shape, strict=True)
            yield from (axis for axis, (was, now) in enumerate(pairs) if axis and now != was)


def _larger(size: int, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with every axis of this size twice as long, the samples left out."""
    for axis in range(1, tensor.dim()):
        if tensor.shape[axis] == size:
            tensor = torch.cat([tensor, tensor], axis)
    return tensor


def _feature_axes(graph: Graph, leaf: Leaf) -> set[int]:
    """Where the features of the nearest layers are in an output."""
    found: set[int] = set()
    if leaf.source is None:
        return found
    for each in frontier(graph, leaf.source):
        axis = follow(graph, each.value, each.axis).axes.get(leaf.source)
        # Features that were averaged to one are none.
        if axis and (leaf.spec.shape[axis] > 1 or each.features == 1):
            found.add(axis)
    return found


def _norm_axes(graph: Graph, leaf: Leaf) -> set[int]:
    """Where the channels of the nearest normalisation are in an output."""
    if leaf.source is None:
        return set()
    behind = sorted(ancestors(graph, leaf.source.node) | {leaf.source.node}, reverse=True)
    for index in behind:
        node = graph.nodes[index]
        name = packet(node.operation) if node.role == "operation" else ""
        if name in NORMS | LAST_NORMS:
            axis = 1 if name in NORMS else len(node.outputs[0].shape) - 1
            reached = follow(graph, Ref(index), axis).axes.get(leaf.source)
            return {reached} if reached and leaf.spec.shape[reached] > 1 else set()
    return set()


def _joined_axes(graph: Graph, leaf: Leaf) -> set[int]:
    """Where an output is put together from features of several branches."""
    node = graph.nodes[leaf.source.node] if leaf.source is not None else None
    if node is None or packet(node.operation) != "cat" or leaf.source is None:
        return set()
    axis = node.arguments[1] if len(node.arguments) > 1 else dict(node.keywords).get("dim", 0)
    return {int(axis) % len(leaf.spec.shape)} - {0}
