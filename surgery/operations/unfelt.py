"""Operations that one of two models has, and of which the outputs say nothing.

That both compute the same says of such an operation that it is the same as what the other has in
its place, or that it did nothing: what saturates behind it hides it, or no number reached its
bounds. Which of the two it is, is seen when it is left out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import get_gradient_edge

from surgery.graph.example import Example
from surgery.graph.extras import Extra
from surgery.graph.graph import Graph
from surgery.graph.skeleton import Skeleton, is_floating
from surgery.operations.steps import OutOfStepError, Steps, fitted
from surgery.operations.trial import Results, Stepping, replaced, run

# How often operations are left out to tell apart those whose slopes say nothing.
_PASSES = 16
# By how much more than rounding slopes have to say that an operation is felt.
_SURELY = 100


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass of a model that can be run again.

    Attributes:
        skeleton: a stand-in; all its parameters have slopes.
        graph: its recording.
        example: what it is run on.
        watched: modules whose results are wanted.
        chosen: what of the results is compared.
        steps: what to note and to put in, for one pass.
        rounding: how much of what is compared may be rounding.
        slopes: whether there is memory to remember the way.
    """

    skeleton: Skeleton
    graph: Graph
    example: Example
    watched: Sequence[str]
    chosen: Callable[[Results], list[torch.Tensor]]
    steps: Callable[[], Steps]
    rounding: float
    slopes: bool

    def run(self, found: Iterable[Extra], left_out: Iterable[Extra], *, grad: bool) -> Found:
        """Run it, with some operations left out."""
        steps, example = self.steps(), self.example
        steps.around(found, left_out)
        if grad:
            example = replaced(example, _following)
        execution = Stepping(self.skeleton, steps)
        results = run(self.skeleton, example, self.watched, execution, grad=grad)
        return Found(results, self.chosen(results), steps)


@dataclass(frozen=True, eq=False)
class Found:
    """What came out of one pass, and what went on in it."""

    results: Results
    compared: list[torch.Tensor]
    steps: Steps


def unfelt(model: Pass, found: Sequence[Extra]) -> tuple[list[Extra], list[Extra]]:
    """The operations without which nothing that is compared would be another.

    Slopes tell which are felt, where they are and where they are left out. The rest are left out,
    together and by halves.

    Args:
        model: one of two models that compute the same.
        found: what only it has.

    Returns:
        Those that nothing depends on, and those of which that cannot be told. Of several that
        something depends on together, each is looked at by itself.
    """
    hidden, untold = _weighed(model, found)
    parts = [part for e in found if e not in hidden and e not in untold for part in e.parts]
    more = _weighed(model, parts)
    return hidden + more[0], untold + more[1]


def _weighed(model: Pass, found: Sequence[Extra]) -> tuple[list[Extra], list[Extra]]:
    """The same, for operations as they are."""
    found = [each for each in found if _fits(model.graph, each)]
    if not found:
        return [], []
    try:
        base = [each.detach().clone() for each in model.run((), (), grad=False).compared]
    except RuntimeError:
        # The code does something else than in its recording.
        return [], list(found)
    left = list(found)
    for without in (False, True):
        if left and model.slopes:
            felt = _felt(model, left, left if without else [])
            left = [each for each in left if each not in felt]
    return _halved(model, left, base)


def _fits(graph: Graph, each: Extra) -> bool:
    """Whether what goes in can go on in the place of what comes out."""
    number, place = each.entry
    before, after = graph.spec(graph.nodes[number].inputs[place]), graph.nodes[each.exit].outputs[0]
    with contextlib.suppress(OutOfStepError):
        like = torch.empty(after.shape, device="meta")
        return fitted(torch.empty(before.shape, device="meta"), like).shape == like.shape
    return False


def _felt(model: Pass, found: list[Extra], left_out: list[Extra]) -> list[Extra]:
    """Those that move what is compared, as far as slopes tell."""
    try:
        made = model.run(found, left_out, grad=True)
        edges = made.results.edges
        looked = [t for t in made.compared if t.requires_grad or id(t) in edges]
        inner = {
            each: edges[id(made.steps.seen[each.exit])]
            for each in found
            if id(made.steps.seen.get(each.exit)) in edges
        }
        if not looked or not inner:
            return []
        generator = torch.Generator().manual_seed(len(found))
        drawn = [torch.randn(t.shape, generator=generator).to(t) for t in looked]
        starts = [edges.get(id(t)) or get_gradient_edge(t) for t in looked]
        slopes = torch.autograd.grad(starts, [*inner.values()], drawn, allow_unused=True)
    except RuntimeError:
        # What is left out does not go on with the rest, or the code not with autograd.
        return []
    size = math.sqrt(sum(float((tensor.detach() ** 2).sum()) for tensor in looked))
    least = _SURELY * model.rounding * size
    felt = []
    for each, slope in zip(inner, slopes, strict=True):
        before, after = made.steps.entered[each.exit], made.steps.seen[each.exit]
        if slope is not None and before.shape == after.shape:
            felt += [each] if float((slope * (after - before)).norm()) > least else []
    return felt


def _halved(
    model: Pass, found: list[Extra], base: list[torch.Tensor]
) -> tuple[list[Extra], list[Extra]]:
    """Those that can be left out and nothing moves; and what is still open."""
    pending, hidden = [found] if found else [], list[Extra]()
    for _ in range(_PASSES):
        if not pending:
            break
        some = pending.pop()
        try:
            after = model.run(some, some, grad=False).compared
        except (OutOfStepError, RuntimeError):
            moved = True
        else:
            moved = any(_apart(a, b, model.rounding) for a, b in zip(base, after, strict=True))
        if not moved:
            hidden += some
        elif len(some) > 1:
            pending += [some[: len(some) // 2], some[len(some) // 2 :]]
    return hidden, [each for some in pending for each in some]


def _apart(one: torch.Tensor, other: torch.Tensor, rounding: float) -> bool:
    if one.shape != other.shape:
        return True
    if not one.numel():
        return False
    # What is no number is not equal either.
    return not float((one - other).abs().max()) <= rounding * float(one.abs().max())


def _following(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that slopes go back to; not the first of its line, so that it may be written into."""
    if not is_floating(tensor.dtype):
        return tensor
    with torch.enable_grad():
        return tensor.detach().clone().requires_grad_().clone()
