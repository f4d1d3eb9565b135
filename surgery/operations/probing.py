"""Numbers of classes to try a replacement with, and what every output becomes by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from surgery.errors import PlanError
from surgery.graph.aten import packet
from surgery.graph.graph import Spec
from surgery.heads import Head
from surgery.operations.follow import PerClass, multiple_of
from surgery.operations.plan import OutputChange
from surgery.operations.simulate import ProbeSizes
from surgery.survey import Site, Survey

Sizes: TypeAlias = Sequence[tuple[Head, int]]


def probe_sizes(
    known: Survey,
    chosen: Sizes,
    items: Mapping[str, Sequence[PerClass]],
    *,
    alike: bool = False,
) -> list[tuple[Head, int]]:
    """A number of classes to try for each head, which equals no other dimension.

    Heads that make one output together, or share a tensor with one entry a class, are tried with
    one number, a multiple of what the groups behind any of them share.

    Args:
        known: the model before.
        chosen: the heads with the numbers asked for.
        items: for each of them, the tensors that follow.
        alike: try heads with one number of classes with one number too, where they are to get one.

    Raises:
        PlanError: such heads are to have different numbers of classes.
    """
    probes = ProbeSizes(known.graphs.values(), [size for _, size in chosen])
    groups: list[list[tuple[Head, int]]] = []
    for head, size in chosen:
        bound = [
            group
            for group in groups
            if any(_bound(known, head, size, *other, items) for other in group)
            or (alike and any((h.num_classes, n) == (head.num_classes, size) for h, n in group))
        ]
        groups = [group for group in groups if group not in bound]
        groups.append([*(pair for group in bound for pair in group), (head, size)])
    found: dict[str, int] = {}
    for group in groups:
        multiple = math.lcm(*(multiple_of(known, head) for head, _ in group))
        found.update(dict.fromkeys((head.address for head, _ in group), probes.next(multiple)))
    return [(head, found[head.address]) for head, _ in chosen]


def _bound(
    known: Survey,
    head: Head,
    size: int,
    other: Head,
    number: int,
    items: Mapping[str, Sequence[PerClass]],
) -> bool:
    """Whether two heads can only have one number of classes."""
    tensors = {item.addresses for item in items[other.address]}
    shared = [item for item in items[head.address] if item.addresses in tensors]
    coupled = head.address in other.follows or other.address in head.follows
    together = coupled or _together(known, head, other)
    if (shared or together) and size != number:
        raise PlanError(
            f"two heads {'make one output together' if together else 'share a tensor'}, and are "
            "to have different numbers of classes",
            where=", ".join((other.address, head.address, *(i.addresses[0] for i in shared))),
            expected="one number for both",
            found=f"{number} and {size}",
            fix=f"surgery.replace_head(model, {size}, heads={[other.address, head.address]!r})",
        )
    return together or bool(shared)


def _together(known: Survey, head: Head, other: Head) -> bool:
    """Whether two heads are added up, averaged or chosen between in one output, or are levels."""
    mine, others = (
        {(s.mode, s.leaf.path, s.span) for s in known.sites[h.address] if _is_shared(known, s)}
        for h in (head, other)
    )
    return not mine.isdisjoint(others)


def _is_shared(known: Survey, site: Site) -> bool:
    """Whether a head's classes fill an axis, or heads stand in it that would not fit side by side.

    The levels of a pyramid do: each makes the same entries, for other places of another axis.
    """
    size = site.leaf.spec.shape[site.axis]
    place = (site.mode, site.leaf.path)
    beside = [s for sites in known.sites.values() for s in sites if (s.mode, s.leaf.path) == place]
    return site.span == size or sum(s.span for s in beside) > size


def output_changes(
    known: Survey,
    chosen: Sizes,
    trial: Sizes,
    after: Mapping[str, Mapping[str, Any]],
) -> tuple[OutputChange, ...]:
    """What every output must be, from what it became with probe sizes in place of the classes.

    Args:
        known: the model before.
        chosen: the heads with the numbers asked for.
        trial: the same heads with the numbers that were tried.
        after: by mode and path, the outputs that came of those.

    Raises:
        PlanError: an output changed in a way the heads do not explain, or none followed a head.
    """
    changes = []
    moved: set[str] = set()
    probes = {head.address: size for head, size in trial}
    for mode, leaves in after.items():
        before = {leaf.path: leaf.spec for leaf in known.graphs[mode].leaves}
        for path in {**before, **leaves}:
            if path not in before or path not in leaves:
                raise _moved(path, mode, before.get(path), leaves.get(path), chosen)
            old, new = before[path], leaves[path].spec
            here = [
                (head, size)
                for head, size in chosen
                if any(s.leaf.path == path and s.mode == mode for s in known.sites[head.address])
            ]
            shape, axes = _expected(old, new, here, probes)
            if shape is None:
                raise _moved(path, mode, old, new, chosen)
            if axes:
                moved.update(head.address for head, _ in here)
            changes.append(OutputChange(mode, path, old, Spec(shape, new.dtype), axes))
    for head, _ in chosen:
        if head.address not in moved:
            raise PlanError(
                "no output follows this head's number of classes, so nothing could be proven",
                where=head.address or "(the model itself)",
                expected="an output with an axis for the classes",
                found=known.heads.ending,
                fix="return the logits from forward, or choose another head with heads=",
            )
    return tuple(changes)


# What may work on many classes and not on few.
_CHOOSING = frozenset(
    {
        *("topk", "kthvalue", "select", "slice", "narrow", "index", "index_select", "gather"),
        *("split", "split_with_sizes", "unbind"),
    }
)


def are_few(known: Survey, chosen: Sizes) -> bool:
    """Whether so few classes could behave otherwise than the numbers that are tried."""
    for head, size in chosen:
        if size == 1:
            return True
        for site in known.sites[head.address] if size < head.num_classes else ():
            graph = known.graphs[site.mode]
            users = {user for ref in site.track.axes for user in graph.users[ref.node]}
            if any(packet(graph.nodes[user].operation) in _CHOOSING for user in users):
                return True
    return False


def check_few(changes: Sequence[OutputChange], after: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold a plan for few classes against what comes out then: one class may be squeezed away.

    Raises:
        PlanError: an output has another shape than with any other number of classes.
    """
    for change in changes:
        leaf = after[change.mode].get(change.path)
        if leaf is None or leaf.spec != change.after:
            raise PlanError(
                "with so few classes an output has another form than with more",
                where=f"{change.path} ({change.mode})",
                expected=str(change.after),
                found=str(getattr(leaf, "spec", "nothing")),
                fix="ask for more classes, or change forward",
            )


def _expected(
    old: Spec, new: Spec, here: list[tuple[Head, int]], probes: Mapping[str, int]
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The shape an output must have, and its class axes; None where it cannot be explained."""
    # What a quantised head makes becomes floating-point numbers together with its layer.
    freed = new.dtype.is_floating_point and any(head.kind == "packed" for head, _ in here)
    if len(old.shape) != len(new.shape) or (old.dtype != new.dtype and not freed):
        return None, ()
    # Heads with one probe size make the output together, and move it once.
    parts = {probes[head.address]: (head.num_classes, size) for head, size in here}
    trial = sum(probe - classes for probe, (classes, _) in parts.items())
    shape, axes = list(old.shape), []
    for axis, (was, now) in enumerate(zip(old.shape, new.shape, strict=True)):
        if was == now:
            continue
        times, rest = divmod(now - was, trial) if trial else (0, 1)
        # An axis that holds the classes so often is at least that long; pairs of classes are not.
        if rest or times < 1 or times * sum(classes for classes, _ in parts.values()) > was:
            return None, ()
        shape[axis] = was + times * sum(size - classes for classes, size in parts.values())
        axes.append(axis)
    return tuple(shape), tuple(axes)


def _moved(path: str, mode: str, old: Any, new: Any, chosen: Sizes) -> PlanError:
    names = ", ".join(head.address or "(the model itself)" for head, _ in chosen)
    return PlanError(
        f"with other classes in {names}, an output changes in a way that is not explained by them",
        where=f"{path} ({mode})",
        expected=f"{old} with another class axis",
        found=str(getattr(new, "spec", new)),
        fix="surgery.replace(model, {address: module}) changes layers without this promise",
    )
