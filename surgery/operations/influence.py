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
) -> tuple[str, ...]:
    """The tensors that have no say in what is compared.

    Slopes tell which may have none; that nothing moves when those are drawn anew, proves it.

    Args:
        skeleton: a stand-in with random weights; those that seem silent are drawn anew.
        side: its cells.
        example: what to run it on.
        watched: modules whose results are wanted.
        chosen: what of the results is compared.
        generator: where random numbers are drawn from.
        steps: what to note on the way and to put in, for one pass.

    Returns:
        Addresses, in order; none where that cannot be said.
    """
    every = _entries(skeleton, side)
    # Running statistics have no slopes; they say as much as the scale beside them.
    entries = [entry for entry in every if entry.kind == "parameter"]
    weights = [entry.tensor.requires_grad_() for entry in entries]
    try:
        results = run(skeleton, example, watched, Stepping(skeleton, steps()), grad=True)
        found = chosen(results)
        looked = [t for t in found if t.requires_grad or id(t) in results.edges]
        if not looked:
            return ()
        drawn = [torch.randn(t.shape, generator=generator).to(t) for t in looked]
        starts = [results.edges.get(id(t)) or get_gradient_edge(t) for t in looked]
        slopes = torch.autograd.grad(starts, weights, drawn, allow_unused=True)
    except RuntimeError:
        # Code of the user's own that does not go with autograd: nothing can be said.
        return ()
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    size = math.sqrt(sum(float((tensor.detach() ** 2).sum()) for tensor in looked))
    before = [tensor.detach().clone() for tensor in found]
    quiet = [
        entry
        for entry, slope in zip(entries, slopes, strict=True)
        if slope is None or float((slope * entry.tensor).norm()) <= _FELT * size
    ]
    if not quiet or len(quiet) == len(entries):
        return ()
    modules = {tree.split(entry.address)[0] for entry in quiet}
    modules -= {tree.split(entry.address)[0] for entry in entries if entry not in quiet}
    quiet = [
        entry
        for entry in every
        if entry in quiet or (entry.kind == "buffer" and tree.split(entry.address)[0] in modules)
    ]
    randomise(skeleton.model, side, generator, only={entry.address for entry in quiet})
    after = chosen(run(skeleton, example, watched, Stepping(skeleton, steps())))
    moved = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    largest = max(float(tensor.abs().max()) for tensor in before)
    return tuple(entry.address for entry in quiet) if moved <= _FELT * largest else ()


def _entries(skeleton: Skeleton, side: Canonical) -> list[tree.Entry]:
    """The tensors of operations that numbers flow through."""
    held = side.tensors
    return [
        entry
        for entry in tree.index(skeleton.model).of_kind("parameter", "buffer")
        if entry.address in held and is_floating(entry.tensor.dtype)
    ]
