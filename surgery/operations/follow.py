"""Every tensor with one entry a class: the head's own, and what lies behind it.

A head's weight and bias, the tensors it is computed from (a weight norm's magnitudes, a pruning
mask), and what meets the class axis afterwards (a bias, a temperature, BatchNorm over classes)
all change together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.graph.axes import Meeting, follow
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.packing import PLAIN, Packing
from surgery.graph.walk import Mixing, weight_sources
from surgery.heads import Head
from surgery.survey import Site, Survey

Part: TypeAlias = Literal["weight", "bias", "magnitude", "vector", "behind"]

_ADDITIONS = frozenset({"add", "add_", "sub", "sub_", "rsub"})


@dataclass(frozen=True)
class PerClass:
    """A parameter, buffer or plain tensor with one entry a class.

    Attributes:
        addresses: all of them.
        role: ``parameter``, ``buffer`` or ``constant`` (a plain tensor hung on a module).
        axis: the class axis.
        part: what it is to the head: its ``weight``, its ``bias``, the ``magnitude`` of a weight
            given in parts, a ``vector`` that estimates a norm, or something ``behind`` it.
        share: how many classes share one entry: the groups of a transposed convolution.
        packing: how many entries each class has, and in which order, where it is not one.
        groups: into how many groups of features a convolution deals its entries.
    """

    addresses: tuple[str, ...]
    role: str
    axis: int
    part: Part
    share: int = 1
    packing: Packing = PLAIN
    groups: int = 1

    def length(self, classes: int) -> int:
        """The length of the class axis for so many classes."""
        return self.packing.entries(classes) // self.share


def per_class_tensors(survey: Survey, head: Head) -> tuple[PerClass, ...]:
    """Find every tensor that must follow a head's number of classes.

    Raises:
        PlanError: something behind the head sums over its classes, or one tensor would have to
            follow along two axes.
    """
    found: dict[tuple[str, ...], PerClass] = {}
    for site in survey.sites[head.address]:
        graph = survey.graphs[site.mode]
        for item in _of_site(graph, site, head):
            known = found.setdefault(item.addresses, item)
            if (known.axis, known.packing) != (item.axis, item.packing):
                raise PlanError(
                    "one tensor has the classes along two of its axes, and only one can follow",
                    where=item.addresses[0],
                    expected=_placed(known),
                    found=f"{_placed(item)} as well",
                    fix=f"surgery.replace(model, {{{head.address!r}: module}})",
                )
    return tuple(found.values())


def _placed(item: PerClass) -> str:
    packed = "" if item.packing == PLAIN else f", {item.packing}"
    return f"classes along axis {item.axis}{packed}"


def _of_site(graph: Graph, site: Site, head: Head) -> Iterator[PerClass]:
    mixing = site.mixing
    node = graph.nodes[mixing.node]
    if not mixing.packed:
        axis = weight_axis(graph, mixing)
        rows = graph.spec(mixing.weight).shape[axis]
        share = mixing.features // rows if rows else 1
        for item in _sources(graph, mixing.weight, axis, "weight", share, site.packing):
            yield replace(item, groups=_groups(node) if item.part == "weight" else 1)
    for ref in () if mixing.packed else node.inputs:
        shape = graph.spec(ref).shape
        additive = ref != mixing.weight and not graph.nodes[ref.node].depends_on_input
        if additive and shape and shape[-1] == mixing.features:
            yield from _sources(graph, ref, len(shape) - 1, "bias", packing=site.packing)
    for meeting in site.track.meetings:
        if not meeting.contracted:
            _check_pairs(graph, meeting, site)
            own = _is_own_bias(graph, meeting, head)
            part: Part = "bias" if own else "behind"
            yield from _sources(graph, meeting.operand, meeting.axis, part, packing=meeting.packing)
        elif leads_to(graph, meeting.node, site):
            _refuse_contraction(graph, meeting, head)


def _is_own_bias(graph: Graph, meeting: Meeting, head: Head) -> bool:
    """Whether the head's own layer adds this: its bias, in an operation of its own."""
    source = graph.nodes[meeting.operand.node]
    layers = {address.rpartition(".")[0] for address in source.addresses}
    added = packet(graph.nodes[meeting.node].operation) in _ADDITIONS
    return source.role == "parameter" and added and not layers.isdisjoint(head.addresses)


def _check_pairs(graph: Graph, meeting: Meeting, site: Site) -> None:
    """Refuse a matrix over pairs of classes: another of its axes is as long, and all its own.

    Raises:
        PlanError: only one of the two axes could follow.
    """
    shape, out = graph.spec(meeting.operand).shape, graph.nodes[meeting.node].outputs[0].shape
    data = [ref for ref in graph.nodes[meeting.node].inputs if ref in site.track.axes]
    for axis, size in enumerate(shape):
        if axis == meeting.axis or size != shape[meeting.axis] or len(out) < len(shape):
            continue
        for ref in data:
            given = graph.spec(ref).shape
            place = axis + len(given) - len(shape)
            if place < 0 or given[place] == 1:
                sources = weight_sources(graph, meeting.operand)
                raise PlanError(
                    "this seems to hold something for every pair of classes, and only one of its "
                    "axes would follow",
                    where=", ".join(s.addresses[0] for s in sources) or "a tensor made in forward",
                    expected=f"one axis of {size}, for the classes",
                    found=str(graph.spec(meeting.operand)),
                    fix="surgery.replace(model, {address: module}) for the layer that holds it",
                )


def multiple_of(survey: Survey, head: Head) -> int:
    """What a head's number of classes must be a multiple of: groups that share the classes."""
    found = 1
    for site in survey.sites[head.address]:
        factor = site.packing.factor
        graph = survey.graphs[site.mode]
        made = graph.nodes[site.mixing.node]
        groups = _groups(made)
        found = math.lcm(found, groups // math.gcd(groups, factor))
        for ref, axis in site.track.axes.items():
            for node in (graph.nodes[user] for user in graph.users[ref.node] if axis == 1):
                if packet(node.operation) == "native_group_norm" and node.inputs[0] == ref:
                    groups = int(node.arguments[6])
                    held = site.track.packing(ref).factor
                    found = math.lcm(found, groups // math.gcd(groups, held))
    return found


def _groups(node: Node) -> int:
    """The groups of a convolution; 1 for anything else."""
    grouped = "convolution" in packet(node.operation) and len(node.arguments) > 8
    return int(node.arguments[8]) if grouped else 1


def leads_to(graph: Graph, node: int, site: Site) -> bool:
    """Whether an operation stands between a head and anything the model returns."""
    ends = {leaf.source.node for leaf in graph.leaves if leaf.source is not None}
    pending, seen = [node], set()
    while pending:
        index = pending.pop()
        if index in ends:
            return True
        if index not in seen:
            seen.add(index)
            pending.extend(graph.users[index])
    return False


def weight_axis(graph: Graph, mixing: Mixing) -> int:
    """The axis of the weight operand that becomes the feature axis."""
    node = graph.nodes[mixing.node]
    name = packet(node.operation)
    shape = graph.spec(mixing.weight).shape
    if "convolution" in name:
        transposed = len(node.arguments) > 6 and node.arguments[6] is True
        return 1 if transposed else 0
    if name in ("_trilinear", "linear", "mkldnn_linear"):
        return 0
    if name in ("_cdist_forward", "_euclidean_dist"):
        return len(shape) - 2
    if name in ("mm", "addmm", "_addmm_activation", "mv", "addmv", "bmm", "baddbmm"):
        if len(shape) == 3 and mixing.axis == 0:
            return 0
        second = node.inputs[-1] == mixing.weight
        return len(shape) - 1 if second else max(len(shape) - 2, 0)
    out = len(graph.spec(mixing.value).shape)
    if name in ("sum", "mean", "linalg_vector_norm", "norm"):
        matching = [axis for axis, size in enumerate(shape) if size == mixing.features]
        return matching[0] if matching else 0
    return mixing.axis - (out - len(shape))


def _sources(
    graph: Graph, ref: Ref, axis: int, part: Part, share: int = 1, packing: Packing = PLAIN
) -> Iterator[PerClass]:
    """The tensors an operand is computed from, each with the axis that becomes the operand's."""
    pending: list[tuple[Ref, int, Part]] = [(ref, axis, part)]
    seen: set[tuple[Ref, int]] = set()
    while pending:
        operand, place, kind = pending.pop(0)
        if (operand, place) in seen:
            continue
        seen.add((operand, place))
        size = graph.spec(operand).shape[place]
        for source in weight_sources(graph, operand):
            for own, length in enumerate(source.outputs[0].shape):
                if length != size:
                    continue
                track = follow(graph, Ref(source.index), own)
                reached = source.index == operand.node and own == place
                if not reached and track.axes.get(operand) != place:
                    continue
                part = _part(source, kind)
                yield PerClass(source.addresses, source.role, own, part, share, packing)
                for meeting in track.meetings:
                    inner = graph.nodes[meeting.operand.node]
                    if graph.nodes[meeting.node].depends_on_input or inner.depends_on_input:
                        continue
                    reason: Part = "vector" if meeting.contracted else "magnitude"
                    pending.append((meeting.operand, meeting.axis, reason))


def _part(source: Node, kind: Part) -> Part:
    shape = source.outputs[0].shape
    flat = sum(size > 1 for size in shape) <= 1
    if kind == "weight" and flat and len(shape) > 0:
        return "magnitude"
    if kind in ("magnitude", "vector") and not flat:
        return "weight"
    return kind


def _refuse_contraction(graph: Graph, meeting: Meeting, head: Head) -> None:
    sources = weight_sources(graph, meeting.operand)
    names = ", ".join(source.addresses[0] for source in sources) or "a tensor made in forward"
    node = graph.nodes[meeting.node]
    raise PlanError(
        f"the classes of {head.address or 'the head'!r} are read by a later layer, which was made "
        f"for {head.num_classes} of them and cannot follow",
        where=names,
        expected="nothing behind the head that sums over its classes",
        found=f"{node.operation} in {node.module or 'the model itself'}",
        fix=f"choose another head with heads=, or replace both layers: "
        f"surgery.replace(model, {{{head.address!r}: ..., ...}})",
    )
