"""What a model without a head gives out: which output holds the features, where, and pooled how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.errors import AmbiguousHeadError, ArgumentError, NoHeadError, PlanError
from surgery.graph.arguments import parameters_of
from surgery.graph.aten import packet
from surgery.graph.axes import follow
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Leaf, Ref
from surgery.graph.structure import tensors
from surgery.graph.walk import ancestors, frontier
from surgery.operations.attach_samples import check_samples
from surgery.operations.attached import POOLS, Pool
from surgery.survey import Survey

# What the field calls the argument that is zero where words are padding.
_MASK = "attention_mask"

_NORMS = frozenset(
    {
        *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"),
        *("_native_batch_norm_legit_no_training", "_batch_norm_no_update", "native_group_norm"),
    }
)
_LAST_NORMS = frozenset({"native_layer_norm", "_fused_rms_norm"})


@dataclass(frozen=True)
class Features:
    """The features that a head is put on.

    Attributes:
        path: which output they are.
        shape: theirs.
        dtype: theirs.
        axis: where the channels are.
        pool: how they become one vector a sample; None where they are.
        mask: the argument that says which places count, and its position, where it has one; None
            where none does.
        remarks: what a person should know of the choice.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int
    pool: Pool | None
    mask: tuple[str, int | None] | None
    remarks: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of channels."""
        return self.shape[self.axis]


def find_features(model: nn.Module, known: Survey, attach: bool | str, pool: Any) -> Features:
    """Choose the features to put a head on.

    The one output; among several the one that is pooled already, or that all others lead to.
    Where the channels are is what the graph shows: the axis of the last layers' features.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        attach: True, or the path of an output.
        pool: how to pool them; None for the model's own way, where there is one.

    Raises:
        NoHeadError: no output holds features.
        AmbiguousHeadError: several outputs, and nothing that decides; or the channels could be
            any of several axes.
        ArgumentError: there is no such output, nothing to pool, or nobody can tell how.
    """
    graph = next(iter(known.graphs.values()))
    every = list(_candidates(graph, known.example))
    remarks: tuple[str, ...] = ()
    if isinstance(attach, str):
        leaf = _named(every, graph, attach)
    else:
        leaf, remarks = _chosen(every, graph, known, pool)
    axis = _channels(graph, leaf)
    _check_everywhere(known, leaf, axis)
    check_samples(model, graph, leaf)
    shape = leaf.spec.shape
    chosen = _pooling(leaf, axis, pool)
    mask, said = _mask(model, known.example, shape) if chosen and len(shape) == 3 else (None, ())
    remarks = (*remarks, *said)
    if chosen and pool is None and not _is_flat(leaf):
        places = len(shape) - 2
        remarks = (*remarks, f"the features are averaged over {places} axes of {leaf.path}")
    return Features(leaf.path, shape, leaf.spec.dtype, axis, chosen, mask, remarks)


def _candidates(graph: Graph, example: Example) -> Iterator[Leaf]:
    """The outputs that hold features for every sample."""
    form = example.in_mode(graph.training)
    given = [t for _, t in tensors([form.args, dict(form.kwargs)]) if t.dim() > 0]
    samples = {tensor.shape[0] for tensor in given}
    seen: set[Ref] = set()
    for leaf in graph.leaves:
        shape = leaf.spec.shape
        if len(shape) < 2 or not leaf.spec.dtype.is_floating_point or leaf.source in seen:
            continue
        if samples and shape[0] not in samples:
            continue
        if leaf.source is not None:
            seen.add(leaf.source)
            yield leaf


def _named(every: Sequence[Leaf], graph: Graph, path: str) -> Leaf:
    full = path if path.startswith("output") else f"output{'' if path[0] in '.[' else '.'}{path}"
    found = next((leaf for leaf in graph.leaves if leaf.path in (path, full)), None)
    shown = ", ".join(repr(leaf.path) for leaf in every)
    if found is None or found.source is None:
        raise ArgumentError(
            "the model gives out no such tensor",
            where="attach",
            expected=f"one of: {shown}" if every else "an output that holds features",
            found=repr(path),
            fix=f"attach={every[0].path!r}" if every else "surgery.record(model).leaves",
        )
    if found.source not in {leaf.source for leaf in every}:
        raise ArgumentError(
            "this output holds no features of every sample",
            where=f"attach={path!r}",
            expected="floating-point numbers, the samples along the first axis and channels behind",
            found=str(found.spec),
            fix=f"attach={every[0].path!r}" if every else "return the features from forward",
        )
    return found


def _chosen(
    every: Sequence[Leaf], graph: Graph, known: Survey, pool: object
) -> tuple[Leaf, tuple[str, ...]]:
    """The output to take, and a remark where there were others."""
    if not every:
        raise NoHeadError(
            "no output of this model holds features that a head could be put on",
            where="the outputs of the model",
            expected="floating-point numbers, the samples along the first axis and channels behind",
            found="; ".join(f"{leaf.path} {leaf.spec}" for leaf in graph.leaves)
            or known.heads.ending,
            fix="return the features from forward",
        )
    if len(every) == 1:
        return every[0], ()
    flat = [leaf for leaf in every if _is_flat(leaf)]
    wide = [leaf for leaf in every if not _is_flat(leaf)]
    # Who says how to pool wants it done, and not what the model pooled.
    last = _last(graph, wide if pool is not None and wide else every)
    if last is None and pool is None and len(flat) == 1 and _follows(graph, flat[0], every):
        last = flat[0]
    if last is None:
        raise AmbiguousHeadError(
            "the model gives out several tensors, and nothing decides which one a head is put on",
            where="the outputs of the model",
            expected="one output, or one that all others lead to",
            found="\n".join(f"{leaf.path}: {leaf.spec}" for leaf in every),
            fix=f"surgery.replace_head(model, ..., attach={every[0].path!r})",
        )
    others = ", ".join(leaf.path for leaf in every if leaf is not last)
    return last, (f"the head is put on {last.path}; {others} could be named with attach=",)


def _last(graph: Graph, leaves: Sequence[Leaf]) -> Leaf | None:
    """The one that is made from all the others."""
    for leaf in leaves:
        above = ancestors(graph, leaf.source.node) if leaf.source is not None else frozenset()
        others = [o.source for o in leaves if o is not leaf and o.source is not None]
        if all(source.node in above for source in others):
            return leaf
    return None


def _follows(graph: Graph, leaf: Leaf, every: Sequence[Leaf]) -> bool:
    above = ancestors(graph, leaf.source.node) if leaf.source is not None else frozenset()
    return any(other.source is not None and other.source.node in above for other in every)


def _is_flat(leaf: Leaf) -> bool:
    """Whether features are one vector a sample, perhaps in the form of an image of one pixel."""
    return len(leaf.spec.shape) == 2 or sum(size > 1 for size in leaf.spec.shape[1:]) <= 1


def _check_everywhere(known: Survey, leaf: Leaf, axis: int) -> None:
    """Refuse an output that is not there, or another, in one of the modes."""
    for mode, graph in known.graphs.items():
        found = next((other for other in graph.leaves if other.path == leaf.path), None)
        same = found is not None and len(found.spec.shape) == len(leaf.spec.shape)
        there = _channels(graph, found) if found is not None and same else axis
        if found is None or not same or found.spec.shape[there] != leaf.spec.shape[axis]:
            shown = "nothing" if found is None else str(found.spec)
        elif there != axis:
            shown = f"{found.spec}, channels along axis {there}"
        else:
            continue
        raise PlanError(
            "this output is not the same in train and in eval mode",
            where=f"{leaf.path} ({mode})",
            expected=f"{leaf.spec}, channels along axis {axis}",
            found=shown,
            fix="let forward return the same form in both modes, or choose an output: attach=",
        )


def _channels(graph: Graph, leaf: Leaf) -> int:
    """The axis of the channels.

    Raises:
        AmbiguousHeadError: it could be any of several.
    """
    shape = leaf.spec.shape
    if len(shape) == 2:
        return 1
    found = _feature_axes(graph, leaf) or _norm_axes(graph, leaf) or _joined_axes(graph, leaf)
    if not found and _is_flat(leaf):
        found = {axis for axis, size in enumerate(shape) if axis and size > 1}
    if len(found) == 1:
        return found.pop()
    shown = ", ".join(str(axis) for axis in sorted(found)) or "any"
    raise AmbiguousHeadError(
        "the graph does not show which axis of the features holds the channels",
        where=leaf.path,
        expected="one axis along which the last layers make features",
        found=f"{leaf.spec}, where it could be {shown}",
        fix="surgery.replace_head(torch.nn.Sequential(model, pool), ..., attach=True), where pool "
        "makes [samples, channels]",
    )


def _feature_axes(graph: Graph, leaf: Leaf) -> set[int]:
    """Where the features of the nearest layers are in an output."""
    if leaf.source is None:
        return set()
    tracks = (follow(graph, each.value, each.axis) for each in frontier(graph, leaf.source))
    return {track.axes[leaf.source] for track in tracks if leaf.source in track.axes} - {0}


def _norm_axes(graph: Graph, leaf: Leaf) -> set[int]:
    """Where the channels of the nearest normalisation are in an output."""
    if leaf.source is None:
        return set()
    behind = sorted(ancestors(graph, leaf.source.node) | {leaf.source.node}, reverse=True)
    for index in behind:
        node = graph.nodes[index]
        name = packet(node.operation) if node.role == "operation" else ""
        if name in _NORMS | _LAST_NORMS:
            axis = 1 if name in _NORMS else len(node.outputs[0].shape) - 1
            reached = follow(graph, Ref(index), axis).axes.get(leaf.source)
            return set() if reached is None else {reached} - {0}
    return set()


def _joined_axes(graph: Graph, leaf: Leaf) -> set[int]:
    """Where an output is put together from features of several branches."""
    node = graph.nodes[leaf.source.node] if leaf.source is not None else None
    if node is None or packet(node.operation) != "cat" or leaf.source is None:
        return set()
    axis = node.arguments[1] if len(node.arguments) > 1 else dict(node.keywords).get("dim", 0)
    return {int(axis) % len(leaf.spec.shape)} - {0}


def _pooling(leaf: Leaf, axis: int, pool: Any) -> Pool | None:
    """How features become one vector a sample.

    Raises:
        ArgumentError: they are one, or nobody can tell how.
    """
    shape = leaf.spec.shape
    if len(shape) == 2:
        if pool is not None:
            raise ArgumentError(
                "these features are one vector a sample: there is nothing to pool",
                where="pool",
                expected="None",
                found=repr(pool),
                fix="leave pool out, or name another output: attach='output.last_hidden_state'",
            )
        return None
    words = len(shape) == 3 and axis == 2
    if pool in ("first", "last") and len(shape) > 3:
        raise ArgumentError(
            "an image has no first or last place",
            where="pool",
            expected="'mean' or 'max'",
            found=f"{pool!r} for {leaf.path} {leaf.spec}",
            fix="pool='mean'",
        )
    if pool is None and words and not _is_flat(leaf):
        raise ArgumentError(
            f"the features of {shape[1]} words or patches are to become one vector a sample, and "
            "the model does not say how",
            where="pool",
            expected=" or ".join(map(repr, POOLS)),
            found=f"{leaf.path} {leaf.spec}",
            fix="pool='first' for a class token, 'mean' for all, 'last' where each sees only those "
            "before it",
        )
    chosen: Pool = "mean" if pool is None else pool
    return chosen


def _mask(
    model: nn.Module, example: Example, shape: tuple[int, ...]
) -> tuple[tuple[str, int | None] | None, tuple[str, ...]]:
    """The argument that says which words are padding, and a remark where it cannot be used.

    Where the example leaves it out, words have to go in for the places that come out.
    """
    parameters = parameters_of(model)
    names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL,)]
    named = _MASK in names
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if not named and not open_ended:
        return None, ()
    # Whoever passes everything on (a wrapper) is told by name.
    position = names.index(_MASK) if named else None
    given = example.kwargs.get(_MASK)
    if given is None and position is not None and position < len(example.args):
        given = example.args[position]
    if isinstance(given, torch.Tensor):
        if tuple(given.shape) == shape[:2]:
            return (_MASK, position), ()
        return None, (
            f"{_MASK} {list(given.shape)} does not fit the {shape[1]} places of the features: "
            "what it leaves out is pooled as well",
        )
    form = [each for _, each in tensors([example.args, dict(example.kwargs)])]
    words = any(tuple(t.shape) == shape[:2] and not t.is_floating_point() for t in form)
    return ((_MASK, position) if words else None), ()
