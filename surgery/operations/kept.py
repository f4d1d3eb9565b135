"""Whether classes can keep what they had: where a row is not a class's own, nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from surgery import tree
from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.graph.graph import Graph, Ref
from surgery.heads import Head
from surgery.operations.follow import PerClass
from surgery.operations.keep import Rows, unpacked
from surgery.operations.plan import Carried
from surgery.operations.values import is_mask
from surgery.survey import Survey

_TOGETHER = frozenset(
    {"native_layer_norm", "native_group_norm", "_fused_rms_norm", "_softmax", "_log_softmax"}
)


def check_kept(model: nn.Module, head: Head, items: Sequence[PerClass], rows: Rows) -> None:
    """Refuse to keep rows that would not answer as before.

    Args:
        model: the model, out of its wrappers.
        head: the head.
        items: its tensors with entries for each class.
        rows: the old classes that new ones keep, by index of the new class.

    Raises:
        PlanError: an entry is shared by classes, reads other features in its new place, or all
            entries are scaled together; or several classes are to be merged whose answers are no
            mean of what is averaged.
    """
    merged = any(len(found) > 1 for found in rows.values())
    for item in items:
        old = tree.get(model, item.addresses[0])
        if not isinstance(old, torch.Tensor):
            continue
        if item.share > 1:
            raise _refused(
                item,
                f"{item.share} classes share each entry of this, so no class can keep one of its "
                "own",
                "one entry a class",
                f"groups of {item.share} classes",
            )
        if item.part == "vector":
            raise _refused(
                item,
                "the weight is divided by a norm of all its rows, so that rows which stay answer "
                "otherwise beside other rows",
                "rows that depend on nothing but themselves",
                "an estimate of the norm of the whole weight",
            )
        if merged and not _is_averaged(item, old, rows):
            raise _refused(
                item,
                "the answer of merged classes would be no mean of theirs: this scales each class",
                "a weight and a bias that are added up",
                f"different values for the merged classes in a {item.part} of the head"
                if item.part != "weight"
                else "a mask",
            )


def check_groups(item: PerClass, old: int, new: int, rows: Rows) -> None:
    """Refuse rows of a grouped convolution that would read the features of another group.

    Args:
        item: the weight.
        old: the number of classes before.
        new: the number of classes after.
        rows: the old classes that new ones keep.

    Raises:
        PlanError: a kept class changes its group.
    """
    if item.groups == 1:
        return
    before, after = item.length(old) // item.groups, item.length(new) // item.groups
    for to, found in rows.items():
        for source in found:
            places = zip(_entries(item, source, old), _entries(item, to, new), strict=True)
            if any(was // before != now // after for was, now in places):
                raise _refused(
                    item,
                    f"class {source} reads one group of features, and as class {to} it would read "
                    "another",
                    f"kept classes that stay in their group of {item.groups}",
                    f"keep={{{to}: {source}}}",
                )


def carried(item: PerClass, old: int, new: int, rows: Rows) -> Carried:
    """Which entries of a tensor live on when classes keep theirs.

    Args:
        item: the tensor.
        old: the number of classes before.
        new: the number of classes after.
        rows: the old classes that new ones keep.
    """
    sources: list[tuple[int, ...]] = [()] * item.length(new)
    for to, found in rows.items():
        kept = (_entries(item, source, old) for source in found)
        for place, *origins in zip(_entries(item, to, new), *kept, strict=True):
            sources[place] = tuple(origins)
    return Carried(item.axis, tuple(sources))


def together(known: Survey, head: Head) -> Iterator[str]:
    """A remark where the answers of all classes are normalised together behind the head."""
    for site in known.sites[head.address]:
        graph = known.graphs[site.mode]
        for ref, axis in site.track.axes.items():
            for user in graph.users[ref.node]:
                node = graph.nodes[user]
                name = packet(node.operation)
                if name in _TOGETHER and node.inputs[0] == ref and _spans(graph, user, ref, axis):
                    yield (
                        f"{name.strip('_')} takes all classes of {head.address!r} together: what "
                        "comes out for classes that stay changes with the others"
                    )


def _spans(graph: Graph, index: int, ref: Ref, axis: int) -> bool:
    """Whether an operation works across an axis of its input."""
    node, shape = graph.nodes[index], graph.spec(ref).shape
    name = packet(node.operation)
    if name == "native_group_norm":
        return axis == 1
    given = node.arguments[1]
    if isinstance(given, tuple):
        return axis >= len(shape) - len(given)
    return isinstance(given, int) and given % len(shape) == axis


def _entries(item: PerClass, index: int, classes: int) -> Iterator[int]:
    """Where the entries of one class are along the axis."""
    for outer in range(item.packing.outer):
        for inner in range(item.packing.inner):
            yield (outer * classes + index) * item.packing.inner + inner


def _is_averaged(item: PerClass, old: torch.Tensor, rows: Rows) -> bool:
    """Whether the mean of entries gives the mean of answers, or they are all alike anyway."""
    masking = item.role != "parameter" and is_mask(old)
    if item.part == "bias" or (item.part == "weight" and not masking):
        return True
    if old.is_meta:
        return False
    held = unpacked(old.detach(), item.axis, item.packing).movedim(item.axis + 1, 0)
    return all(bool((held[list(found)] == held[found[0]]).all()) for found in rows.values())


def _refused(item: PerClass, what: str, expected: str, found: str) -> PlanError:
    return PlanError(
        what,
        where=item.addresses[0],
        expected=expected,
        found=found,
        fix="leave keep out, or those classes",
    )
