"""Tensors with one entry a class that no recording saw: the class weights of a loss.

A loss that hangs on the model runs in the training loop, not in forward, so the graph knows
nothing of it. What is known is where the field keeps such weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from surgery import tree
from surgery.graph.graph import Spec
from surgery.heads import Head
from surgery.operations.follow import PerClass
from surgery.survey import Survey

_WORDS = frozenset({"class", "classes", "label", "labels", "cls"})


def with_class_weights(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    items: Mapping[str, tuple[PerClass, ...]],
) -> dict[str, tuple[PerClass, ...]]:
    """The per-class tensors of each head, with class weights that forward does not read.

    They follow where all heads with their number of classes get one new number; else nothing says
    which head they are about.

    Args:
        model: the model.
        known: its recordings.
        chosen: the heads to be replaced, with their new numbers.
        items: for each of them, the tensors that the recordings show.
    """
    found = dict(items)
    seen = {a for graph in known.graphs.values() for node in graph.nodes for a in node.addresses}
    new = {head.address: size for head, size in chosen}
    for head, _ in chosen:
        alike = [other for other in known.heads if other.num_classes == head.num_classes]
        if len({new.get(other.address) for other in alike}) == 1:
            found[head.address] += tuple(_idle(model, head.num_classes, seen))
    return found


def idle_notes(
    model: nn.Module,
    known: Survey,
    chosen: list[tuple[Head, int]],
    items: Mapping[str, tuple[PerClass, ...]],
) -> Iterator[str]:
    """Say which tensors no recording saw, that have the old number of classes and stay.

    They belong to what runs elsewhere: the transitions of a decoder, the weights of a loss.
    """
    seen = {a for graph in known.graphs.values() for node in graph.nodes for a in node.addresses}
    moved = {head.num_classes for head, size in chosen if size != head.num_classes}
    seen |= {a for followed in items.values() for item in followed for a in item.addresses}
    names: dict[int, str] = {}
    for address, module in tree.walk(model):
        for _, name, tensor in _held(module):
            place = tree.join(address, name)
            if place not in seen and moved.intersection(tensor.shape):
                names.setdefault(id(tensor), f"{place} {Spec(tuple(tensor.shape), tensor.dtype)}")
    listed = list(names.values())
    if listed:
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        yield f"forward does not use {', '.join(listed[:3])}{more}, which may be about the classes"


def _idle(model: nn.Module, classes: int, seen: set[str]) -> Iterator[PerClass]:
    places: dict[int, list[str]] = {}
    tensors: dict[int, tuple[str, torch.Tensor]] = {}
    for address, module in tree.walk(model):
        for role, name, tensor in _held(module):
            place = tree.join(address, name)
            if tensor.shape == (classes,) and place not in seen and _is_about(module, name):
                places.setdefault(id(tensor), []).append(place)
                tensors.setdefault(id(tensor), (role, tensor))
    for key, (role, _) in tensors.items():
        yield PerClass(tuple(dict.fromkeys(places[key])), role, 0, "behind")


def _held(module: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    for role, table in (
        ("parameter", module._parameters),
        ("buffer", module._buffers),
        ("constant", module.__dict__),
    ):
        for name, value in table.items():
            if isinstance(value, torch.Tensor):
                yield role, name, value


def _is_about(module: nn.Module, name: str) -> bool:
    """Whether a vector of that length is about the classes: it is a loss's, or says so."""
    if isinstance(module, _Loss):
        return name in ("weight", "pos_weight")
    return not _WORDS.isdisjoint(re.split(r"[_\d]+", name.lower()))
