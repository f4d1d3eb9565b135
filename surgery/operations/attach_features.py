"""What a model without a head gives out: which output holds the features, where, and pooled how."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.errors import AmbiguousHeadError, ArgumentError, NoHeadError, PlanError
from surgery.graph.arguments import parameters_of
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Leaf, Ref
from surgery.graph.structure import tensors
from surgery.graph.walk import ancestors, frontier
from surgery.operations.attach_channels import find_channels, is_flat
from surgery.operations.attach_roles import Roles
from surgery.operations.attach_samples import check_samples
from surgery.operations.attached import POOLS, Pool
from surgery.survey import Survey

# What the field calls the argument that is zero where words are padding; with a decoder, whose
# words are other ones where they are given.
_MASK = "attention_mask"
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds")
# What else says so under other names, each in a form of its own.
_PADDING = re.compile(r"padding|^mask$|(?:^|_)(?:lengths|lens)$")
_UNREAD = (
    f"is not read where features are pooled, and padding is pooled as well: take it as {_MASK}, "
    "1 where a place counts, or pool in forward"
)


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


def find_features(
    model: nn.Module, known: Survey, attach: bool | str, pool: Any, channels: int | None
) -> Features:
    """Choose the features to put a head on.

    The one output; among several the one that is pooled already, or that all others lead to.

    Args:
        model: the model, out of its wrappers.
        known: its recordings.
        attach: True, or the path of an output.
        pool: how to pool them; None for the model's own way, where there is one.
        channels: the axis of the channels; None for the one that the graph shows.

    Raises:
        NoHeadError: no output holds features.
        AmbiguousHeadError: several outputs, and nothing that decides; or the channels could be
            any of several axes.
        ArgumentError: there is no such output, nothing to pool, or nobody can tell how.
    """
    graph = next(iter(known.graphs.values()))
    roles = Roles(graph)
    every = list(_candidates(roles, known.example))
    remarks: tuple[str, ...] = ()
    if isinstance(attach, str):
        leaf = _named(every, graph, attach)
    else:
        leaf, remarks = _chosen(every, graph, known, pool)
    check_samples(model, roles, leaf)
    if channels is None:
        axis, said = find_channels(model, known, roles, leaf)
        remarks = (*remarks, *said)
    else:
        axis = _axis_named(leaf, channels)
    _check_everywhere(model, known, leaf, axis, channels is not None)
    shape = leaf.spec.shape
    chosen = _pooling(leaf, axis, pool)
    mask, said = _mask(model, known.example, shape) if chosen and len(shape) == 3 else (None, ())
    remarks = (*remarks, *said)
    if chosen and pool is None and not is_flat(leaf):
        places = len(shape) - 2
        remarks = (*remarks, f"the features are averaged over {places} axes of {leaf.path}")
    return Features(leaf.path, shape, leaf.spec.dtype, axis, chosen, mask, remarks)


def _candidates(roles: Roles, example: Example) -> Iterator[Leaf]:
    """The outputs that hold features for every sample, and not how samples are alike."""
    graph = roles.graph
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
            if not any("samples" in held for held in (roles.of(leaf.source) or ())[1:]):
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
    flat = [leaf for leaf in every if is_flat(leaf)]
    wide = [leaf for leaf in every if not is_flat(leaf)]
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
    """The one that is made from all the others, or from all that their layers make."""
    above = {leaf: ancestors(graph, leaf.source.node) for leaf in leaves if leaf.source is not None}
    for leaf, behind in above.items():
        others = [o.source for o in above if o is not leaf and o.source is not None]
        if all(source.node in behind for source in others):
            return leaf
    # What comes out may be normalised or turned, and the model go on without that.
    layers = {
        leaf: {each.node for each in frontier(graph, leaf.source)}
        for leaf in above
        if leaf.source is not None
    }
    deepest = [
        leaf
        for leaf, behind in above.items()
        if all(layers[other] and layers[other] <= behind for other in above if other is not leaf)
    ]
    return deepest[0] if len(deepest) == 1 else None


def _follows(graph: Graph, leaf: Leaf, every: Sequence[Leaf]) -> bool:
    above = ancestors(graph, leaf.source.node) if leaf.source is not None else frozenset()
    return any(other.source is not None and other.source.node in above for other in every)


def _axis_named(leaf: Leaf, channels: int) -> int:
    """The axis that the caller says holds the channels."""
    rank = len(leaf.spec.shape)
    axis = channels + rank if channels < 0 else channels
    if not 0 < axis < rank:
        raise ArgumentError(
            "these features have no such axis of channels",
            where="channels",
            expected=f"one of {', '.join(map(str, range(1, rank)))}: the samples are along axis 0",
            found=f"{channels} for {leaf.path} {leaf.spec}",
            fix=f"channels={rank - 1}",
        )
    return axis


def _check_everywhere(
    model: nn.Module, known: Survey, leaf: Leaf, axis: int, is_named: bool
) -> None:
    """Refuse an output that is not there, or another, in one of the modes."""
    first = next(iter(known.graphs.values()))
    for mode, graph in known.graphs.items():
        found = next((other for other in graph.leaves if other.path == leaf.path), None)
        same = found is not None and len(found.spec.shape) == len(leaf.spec.shape)
        there = axis
        if found is not None and same and not is_named and graph is not first:
            there, _ = find_channels(model, known, Roles(graph), found)
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
    if pool is None and words and not is_flat(leaf):
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
    given = {**dict(zip(names, example.args, strict=False)), **example.kwargs}
    apart = any(given.get(name) is not None for name in _DECODER)
    mask = f"decoder_{_MASK}" if apart else _MASK
    named = mask in names
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if not named:
        others = ", ".join(filter(_PADDING.search, names))
        said = f"{others} {_UNREAD}" if others else ""
        if not open_ended or (said and mask not in given):
            return None, (said,) if said else ()
    # Whoever passes everything on (a wrapper) is told by name.
    found = (mask, names.index(mask) if named else None)
    held = given.get(mask)
    if isinstance(held, torch.Tensor) and tuple(held.shape) == shape[:2]:
        return found, ()
    form = [each for _, each in tensors([example.args, dict(example.kwargs)])]
    words = any(tuple(t.shape) == shape[:2] and not t.is_floating_point() for t in form)
    if words and not isinstance(held, torch.Tensor):
        return found, ()
    if not named and held is None:
        return None, ()
    sizes = f" {list(held.shape)}" if isinstance(held, torch.Tensor) else ""
    return None, (
        f"{mask}{sizes} does not fit the {shape[1]} places of the features: "
        "what it leaves out is pooled as well",
    )
