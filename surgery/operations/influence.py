"""Which tensors of a model decide over what comes out of it, and which do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.autograd.graph import get_gradient_edge

from surgery import tree
from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.pieces import MOVES
from surgery.graph.skeleton import Skeleton, is_floating
from surgery.operations.steps import Steps
from surgery.operations.trial import Results, Stepping, randomise, run

# How much of what comes out a tensor has to move, that its place is proven by it.
_FELT = 1e-7
# How often tensors are drawn anew to tell those apart that have a say.
_PASSES = 16


def activations(graph: Graph) -> int:
    """About how many bytes a forward pass takes that remembers its way, in double precision."""
    return 8 * sum(
        math.prod(spec.shape)
        for node in graph.operations
        if packet(node.operation) not in MOVES
        for spec in node.outputs
    )


def silent(
    skeleton: Skeleton,
    side: Canonical,
    example: Example,
    watched: list[str],
    chosen: Callable[[Results], list[torch.Tensor]],
    generator: torch.Generator,
    steps: Callable[[], Steps | None] = lambda: None,
) -> tuple[str, ...] | None:
    """The tensors that have no say in what is compared.

    Slopes tell which may have none; that nothing moves when those are drawn anew, proves it.
    Where slopes are lost on the way, in what saturates, the rest are told apart by halves.

    Args:
        skeleton: a stand-in with random weights, all of which have slopes; those that seem silent
            are drawn anew.
        side: its cells.
        example: what to run it on.
        watched: modules whose results are wanted.
        chosen: what of the results is compared.
        generator: where random numbers are drawn from.
        steps: what to note on the way and to put in, for one pass.

    Returns:
        Addresses, in order; None where that cannot be said.
    """
    every = _entries(skeleton, side)
    # Running statistics have no slopes; they say as much as the scale beside them.
    entries = [entry for entry in every if entry.kind == "parameter"]
    weights = [entry.tensor for entry in entries]
    try:
        results = run(skeleton, example, watched, Stepping(skeleton, steps()), grad=True)
        found = chosen(results)
        looked = [t for t in found if t.requires_grad or id(t) in results.edges]
        if not looked:
            return None
        drawn = [torch.randn(t.shape, generator=generator).to(t) for t in looked]
        starts = [results.edges.get(id(t)) or get_gradient_edge(t) for t in looked]
        slopes = torch.autograd.grad(starts, weights, drawn, allow_unused=True)
    except RuntimeError:
        # Code of the user's own that does not go with autograd: nothing can be said.
        return None
    size = math.sqrt(sum(float((tensor.detach() ** 2).sum()) for tensor in looked))
    quiet = [
        entry
        for entry, slope in zip(entries, slopes, strict=True)
        if slope is None or float((slope * entry.tensor).norm()) <= _FELT * size
    ]
    if not quiet:
        return ()
    if len(quiet) == len(entries):
        return None
    modules = {tree.split(entry.address)[0] for entry in quiet}
    modules -= {tree.split(entry.address)[0] for entry in entries if entry not in quiet}
    groups: dict[str, set[str]] = {}
    for entry in every:
        module = tree.split(entry.address)[0]
        if entry in quiet or (entry.kind == "buffer" and module in modules):
            groups.setdefault(module, set()).add(entry.address)

    def draw(some: list[set[str]]) -> None:
        randomise(skeleton.model, side, generator, only=set().union(*some))

    def outputs() -> list[torch.Tensor]:
        made = chosen(run(skeleton, example, watched, Stepping(skeleton, steps())))
        return [tensor.detach().clone() for tensor in made]

    still = set().union(*_unmoved([*groups.values()], draw, outputs))
    return tuple(entry.address for entry in every if entry.address in still)


def _unmoved(
    groups: list[set[str]],
    draw: Callable[[list[set[str]]], None],
    outputs: Callable[[], list[torch.Tensor]],
) -> list[set[str]]:
    """The groups of tensors that can be drawn anew and nothing moves; also what is still open."""
    before, pending, still = outputs(), [groups], list[set[str]]()
    for _ in range(_PASSES):
        if not pending:
            break
        some = pending.pop()
        draw(some)
        after = outputs()
        moved = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
        if moved <= _FELT * max(float(tensor.abs().max()) for tensor in before):
            still += some
        elif len(some) > 1:
            pending += [some[: len(some) // 2], some[len(some) // 2 :]]
        before = after
    return [*still, *(group for some in pending for group in some)]


def _entries(skeleton: Skeleton, side: Canonical) -> list[tree.Entry]:
    """The tensors of operations that numbers flow through."""
    held = side.tensors
    return [
        entry
        for entry in tree.index(skeleton.model).of_kind("parameter", "buffer")
        if entry.address in held and is_floating(entry.tensor.dtype)
    ]
