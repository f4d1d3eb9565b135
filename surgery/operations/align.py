"""Find out which tensor of one model is which of another, from what the two compute."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import PlanError, RecordError
from surgery.families.registry import Registry, in_force
from surgery.graph.align import Alignment, alignments
from surgery.graph.distinctions import folded
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.record import record_graph
from surgery.graph.reduce import canonical
from surgery.graph.skeleton import is_floating
from surgery.graph.stacked import stacked
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.correspondence import Correspondence, correspondence_of
from surgery.operations.hooks import undisturbed
from surgery.recording import resolve_example


@dataclass(frozen=True, eq=False)
class Twins:
    """Two models, each with the arguments of one forward pass, and both passes.

    Attributes:
        models: donor and recipient, out of their wrappers.
        examples: the arguments of each; the same tensors in the same order.
        graphs: what each did with them in eval mode.
        forms: by number of a tensor among the arguments that the recipient takes in another form:
            for each of its numbers, which of the donor's it is.
    """

    models: tuple[nn.Module, nn.Module]
    examples: tuple[Example, Example]
    graphs: tuple[Graph, Graph]
    forms: Mapping[int, torch.Tensor] = field(default_factory=dict)


def align(
    donor: nn.Module,
    recipient: nn.Module,
    *,
    example: Any = None,
    recipient_example: Any = None,
    registry: Registry | None = None,
) -> Correspondence:
    """Find out which tensor of one model is which of another, whatever they are called.

    Both models are recorded in eval mode on ``meta``, and their graphs are laid one over the
    other. No name is looked at and nothing is computed. ``surgery.transplant(match="graph")``
    does the same, brings the values over, and proves by the outputs that they belong there.

    Args:
        donor: any module.
        recipient: another implementation of the same architecture, or of one with a part in
            common.
        example: the arguments of one forward pass, for both; left out, those of the family of
            either model, or inferred.
        recipient_example: the same tensors in the form that the recipient takes, where it takes
            them in another: in another order or nesting, with other axes.
        registry: the plugins to ask for an example; those installed, if left out.

    Returns:
        The correspondence: pairs of tensors, what has no counterpart, and in what operations
        differ. ``rename`` serves ``surgery.load_weights``; ``inverse()`` is the way back.

    Raises:
        ExampleError: no example could be inferred, or the two take different ones.
        RecordError: forward raised.
        PlanError: the graphs have nothing in common.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> one = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        >>> class Other(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stem = nn.Conv2d(3, 8, 1)
        ...     def forward(self, x):
        ...         return torch.relu(self.stem(x))
        >>> surgery.align(one, Other(), example=torch.zeros(1, 3, 4, 4)).rename
        {'0.weight': 'stem.weight', '0.bias': 'stem.bias'}
    """
    models = tree.unwrap(tree.check_model(donor)), tree.unwrap(tree.check_model(recipient))
    with undisturbed(*models):
        twins = twins_of(donor, recipient, example, recipient_example, registry)
        return next(correspondences(twins))[0]


def twins_of(
    donor: nn.Module,
    recipient: nn.Module,
    example: Any = None,
    recipient_example: Any = None,
    registry: Registry | None = None,
) -> Twins:
    """Record two models on the same arguments.

    Args:
        donor: a model.
        recipient: another.
        example: arguments for both, or for the donor alone.
        recipient_example: those of the recipient; None for the same.
        registry: the plugins to ask for an example.

    Raises:
        ExampleError: no arguments are known that both take.
        RecordError: forward raised.
    """
    known = in_force(registry)
    models = tree.unwrap(tree.check_model(donor)), tree.unwrap(tree.check_model(recipient))
    if example is not None or recipient_example is not None:
        first = resolve_example(donor, example, registry=known)
        other = example if recipient_example is None else recipient_example
        try:
            second = resolve_example(recipient, other, registry=known)
            found = _recorded(models, (first, second))
            return found if recipient_example is None else _in_form(found)
        except RecordError as error:
            if recipient_example is not None:
                raise
            return _apart(models, (first, _own(recipient, known, error)), error)
    failed: RecordError | None = None
    for model in (donor, recipient):
        try:
            plain = _own(model, known)
            return _recorded(models, (plain, plain))
        except RecordError as error:
            failed = failed or error
    why = failed or RecordError(
        "the two models take no arguments in common", fix="surgery.align(..., example=tensor)"
    )
    return _apart(models, (_own(donor, known, why), _own(recipient, known, why)), why)


def _in_form(twins: Twins) -> Twins:
    """Two models on the same tensors in two forms: the first of one is the first of the other."""
    one, other = twins.graphs
    names = [node.addresses for node in one.nodes if node.role == "input"]
    inputs = [node.index for node in other.nodes if node.role == "input"]
    if len(names) == len(inputs):
        named = dict(zip(inputs, names, strict=True))
        nodes = (replace(n, addresses=named.get(n.index, n.addresses)) for n in other.nodes)
        other = replace(other, nodes=tuple(nodes))
    given = [[tensor for _, tensor in tensors((e.args, dict(e.kwargs)))] for e in twins.examples]
    found = {number: _order(*pair) for number, pair in enumerate(zip(*given, strict=False))}
    forms = {number: order for number, order in found.items() if order is not None}
    return replace(twins, graphs=(one, other), forms=forms)


def _order(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor | None:
    """Which number of a tensor each number of another is; None where that cannot be said."""
    if one.is_meta or other.is_meta or one.numel() != other.numel() or one.dtype != other.dtype:
        return None
    flat = (each.detach().cpu().flatten() for each in (one, other))
    (numbers, there), (same, here) = (each.sort() for each in flat)
    # Of two numbers that are the same nobody knows which is which.
    if not torch.equal(numbers, same) or bool((numbers[1:] == numbers[:-1]).any()):
        return None
    return torch.empty_like(there).scatter_(0, here, there)


def _own(model: nn.Module, known: Registry, failed: RecordError | None = None) -> Example:
    """What a model takes by itself.

    Raises:
        RecordError: nothing is known; what failed before, if something did.
    """
    try:
        found = resolve_example(model, None, registry=known)
    except RecordError as error:
        raise failed or error from error
    return Example(found.args, found.kwargs, prepare=found.prepare)


def _apart(
    models: tuple[nn.Module, nn.Module], examples: tuple[Example, Example], failed: RecordError
) -> Twins:
    """Two models on arguments of different sizes: another number of channels, another image size.

    Raises:
        RecordError: they take other kinds of arguments, or other numbers of them.
    """
    forms = [
        [(tensor.dim(), is_floating(tensor.dtype)) for _, tensor in tensors((e.args, e.kwargs))]
        for e in examples
    ]
    if forms[0] != forms[1]:
        raise failed
    lengths = iter([t.shape[:1] for _, t in tensors((examples[0].args, examples[0].kwargs))])

    def as_many(tensor: torch.Tensor) -> torch.Tensor:
        # As many samples as the donor gets: the results of both are to fit.
        return tensor.new_zeros((*next(lengths), *tensor.shape[1:]))

    args, kwargs = replace_tensors((examples[1].args, dict(examples[1].kwargs)), as_many)
    alike = replace(examples[1], args=args, kwargs=kwargs)
    for second in (alike, examples[1]):
        with contextlib.suppress(RecordError):
            return _recorded(models, (examples[0], second))
    raise failed


def _recorded(models: tuple[nn.Module, nn.Module], examples: tuple[Example, Example]) -> Twins:
    one, other = (
        record_graph(model, _anew(_in_precision(example, model, models)), train=False)
        for model, example in zip(models, examples, strict=True)
    )
    return Twins(models, examples, (one, other))


def _in_precision(
    example: Example, model: nn.Module, models: tuple[nn.Module, nn.Module]
) -> Example:
    """The example for one of two models that hold their weights in different precision."""
    precisions = [_precisions(each) for each in models]
    own = _precisions(model)
    if precisions[0] == precisions[1] or len(own) != 1:
        return example
    (dtype,) = own

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if is_floating(tensor.dtype) else tensor

    args, kwargs = replace_tensors((example.args, dict(example.kwargs)), cast)
    return replace(example, args=args, kwargs=kwargs)


def _precisions(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if is_floating(p.dtype)}


def follow_all(model: nn.Module) -> None:
    """Let slopes go back to every parameter of a stand-in, frozen or not.

    Which operators a product is made of depends on that, and all passes are to have the same.
    """
    for entry in tree.index(model).of_kind("parameter"):
        if is_floating(entry.tensor.dtype):
            entry.tensor.requires_grad_()


def _anew(example: Example) -> Example:
    """The example for a model that starts anew: what it keeps in eval mode it forgets in train."""

    def prepare(model: nn.Module) -> None:
        if example.prepare is not None:
            example.prepare(model)
        model.train()
        follow_all(model)

    return replace(example, prepare=prepare)


def correspondences(twins: Twins) -> Iterator[tuple[Correspondence, Alignment]]:
    """Every way in which the graphs of two models may lie one over the other, the likeliest first.

    Raises:
        PlanError: the graphs have nothing in common.
    """
    indexes = tree.index(twins.models[0]), tree.index(twins.models[1])
    titles = tuple(type(model).__name__ for model in twins.models)
    inputs = [node.index for node in twins.graphs[1].nodes if node.role == "input"]
    formed = frozenset(inputs[number] for number in twins.forms)
    for alignment in (replace(each, formed=formed) for each in _laid(twins.graphs)):
        found = correspondence_of(alignment, (titles[0], titles[1]), indexes)
        if not found.parts:
            raise _nothing(found)
        yield found, alignment


def _laid(graphs: tuple[Graph, Graph]) -> Iterator[Alignment]:
    """Every way to lay two graphs over each other; stacks of weights apart where more fits so."""
    one, other = map(canonical, graphs)
    ways = alignments(one, other)
    first = next(ways)
    if not first.complete and (apart := stacked(*graphs)) is not None:
        others = alignments(*apart)
        better = next(others)
        if _fitting(better) > _fitting(first):
            first, ways = better, others
    return itertools.chain([first], ways)


def _fitting(alignment: Alignment) -> int:
    """How many numbers lie in paired cells of one form."""
    one, other = alignment.one.cells, alignment.other.cells
    pairs = ((one[a], other[b]) for a, b in alignment.pairs)
    alike = (cell for cell, twin in pairs if cell.label == twin.label)
    return sum(slot.piece.numel for cell in alike for slot in cell.slots)


def _nothing(found: Correspondence) -> PlanError:
    # In what layers differ that stand in the same place comes first: it is why nothing fits.
    shown = list(folded(found.differences))[:3]
    shown += [str(each) for each in (*found.donor_only[:3], *found.recipient_only[:3])]
    return PlanError(
        "the two models have nothing in common: no tensor of the one stands where one of the "
        "other does, with its shape",
        where=f"{found.donor.title}, {found.recipient.title}",
        expected="two implementations of one architecture",
        found="\n".join(shown),
        fix="build the recipient with the donor's depth and width",
    )
