"""Build a model with its weights in place: nothing is initialised that a file fills."""

from __future__ import annotations

import inspect
import warnings
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.claims import FOLLOWING
from surgery.deferred import Deferred, construct
from surgery.errors import ArgumentError, PlanError, SurgeryError
from surgery.families.applied import heads_for
from surgery.families.registry import Registry, in_force
from surgery.operations.choose import check_classes
from surgery.operations.draws import Draws
from surgery.operations.head import replace_head
from surgery.operations.names import remember
from surgery.operations.plan import Check, Outcome, Plan
from surgery.operations.published import published
from surgery.operations.target import Target, resolve_target
from surgery.operations.undoing import Operated
from surgery.operations.values import check_generator
from surgery.parameters import audit
from surgery.survey import survey
from surgery.weights.folding import fold
from surgery.weights.match import match
from surgery.weights.memory import describe
from surgery.weights.policies import check_policies
from surgery.weights.renaming import Rename
from surgery.weights.source import read
from surgery.weights.value import Weights
from surgery.weights.verdicts import Matching

# Stands for the heads of a model that could not be recorded; no address holds a space.
_UNKNOWN = "not known"
_REPLACED = "the constructor made another number of classes: its heads were replaced"


@dataclass(frozen=True)
class _Loaded:
    """What came from a source of weights, and where in memory it lies by key of the model."""

    matching: Matching
    lies: Mapping[str, int]
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]
    origin: str


def build(
    target: str | Callable[..., nn.Module],
    *,
    num_classes: int | None = None,
    weights: object = None,
    mmap: bool = False,
    rename: Rename | None = None,
    drop: object = (),
    on_mismatch: object = "skip",
    min_coverage: float = 0.5,
    generator: torch.Generator | None = None,
    example: Any = None,
    registry: Registry | None = None,
    **options: Any,
) -> Outcome:
    """Build a model, give it weights, and initialise only what they do not fill.

    The constructor runs without filling anything. Tensors of the source become the parameters
    without being copied again, and what is left is initialised as the constructor would have
    done: without weights the model equals, bit for bit, the one that ``target`` makes from the
    same seed.

    Args:
        target: a catalog name (``"package:name"``), ``"package.module:callable"``, or a
            callable that returns a model.
        num_classes: the number of classes. It is handed to the callable where that takes it;
            where it does not, or nothing came of it, the heads are replaced afterwards.
        weights: a path, a mapping, a model or ``Weights``, as ``surgery.weights.read`` takes
            them, or an entry that a library publishes, with ``url`` or ``get_state_dict``; the
            class names in its ``meta`` are remembered with the model. None: none.
        mmap: map the file instead of copying it: nothing is read before it is used, but a file
            that is cut short in place ends the process.
        rename: names for the source's keys, as in ``surgery.weights.match``.
        drop: patterns of keys to leave out.
        on_mismatch: what fits by name and not by shape is skipped and initialised (``"skip"``)
            or an error (``"error"``), or by pattern.
        min_coverage: the share of tensors, 0 to 1, that must match on one side.
        generator: source of the random numbers, on the CPU; torch's default one, if left out.
        example: the arguments of one forward pass, to check the number of classes with, where the
            model's family does not know its heads; left out, it is supplied or inferred.
        registry: the plugins to ask; those installed, if left out.
        options: further arguments for the callable.

    Returns:
        The outcome: ``.model``, in train mode as its constructor leaves it, what came from where
        (``.plan.notes``) and the checks. There is nothing to undo.

    Raises:
        ArgumentError: an unknown name (the closest are listed) or a wrong argument.
        PlanError: the constructor raised; the error says what.
        CoverageError: too little of the source fits.
        WeightsError: the source cannot be read.
        UnsupportedModelError: what was built is no model, or lazy or scripted.

    Example:
        >>> import torch, surgery
        >>> source = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        >>> outcome = surgery.build(
        ...     "torch.nn:Linear", in_features=3, out_features=2, weights=source)
        >>> outcome.model(torch.ones(1, 3))
        tensor([[3., 3.]], grad_fn=<AddmmBackward0>)
    """
    if num_classes is not None:
        check_classes(None, num_classes)
    check_generator(generator)
    registry = in_force(registry)
    resolved = resolve_target(target, registry)
    heads: tuple[str, ...] = ()
    draws = Draws(generator)
    try:
        # Parameters made in inference mode could never be trained.
        with torch.inference_mode(False):
            deferred, handed = constructed(resolved, num_classes, options)
            loaded = None
            if weights is not None:
                source = published(weights)
                opened = read(source.source, mmap=mmap, registry=registry)
                matching = matched(
                    deferred.model,
                    opened,
                    registry=registry,
                    rename=rename,
                    drop=drop,
                    on_mismatch=on_mismatch,
                    min_coverage=min_coverage,
                )
                loaded = _load(deferred, opened, matching, source.classes)
            initialised = deferred.pending
            deferred.fill(generator=generator)
            outcome = _outcome(resolved, num_classes, deferred, loaded, initialised)
            if num_classes is not None and handed:
                outcome, heads = _proven(outcome, num_classes, example, registry)
            if num_classes is not None and not heads:
                outcome = _replaced(outcome, num_classes, example, generator, registry)
        _tell(outcome, loaded, num_classes, heads)
        return outcome
    except BaseException:
        draws.take_back()
        raise


def constructed(
    target: Target, num_classes: int | None, options: Mapping[str, Any], verb: str = "build"
) -> tuple[Deferred, bool]:
    """The constructed model, and whether its callable was given the number of classes.

    Raises:
        PlanError: the constructor raised.
    """
    takes = num_classes is not None and _takes_classes(target.factory)
    try:
        if takes:
            try:
                return construct(target.factory, **options, num_classes=num_classes), True
            except TypeError as error:
                if "num_classes" not in str(error):
                    raise
        return construct(target.factory, **options), False
    except SurgeryError:
        raise
    except Exception as error:
        shown = "".join(f", {name}={value!r}" for name, value in options.items())
        raise PlanError(
            "the constructor raised",
            where=target.title,
            expected="a model",
            found=f"{type(error).__name__}: {error}",
            fix=f"surgery.{verb}({target.title!r}{shown}, ...) with arguments that it takes",
        ) from error


def _takes_classes(factory: Callable[..., nn.Module]) -> bool:
    """Whether a callable may take ``num_classes``: by name, or whatever it is given."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return open_ended or "num_classes" in parameters


def matched(
    model: nn.Module,
    source: Weights,
    *,
    registry: Registry,
    rename: Rename | None = None,
    drop: object = (),
    on_mismatch: object = "skip",
    min_coverage: float = 0.5,
) -> Matching:
    """Find which tensor of a source belongs where in a model; nothing is read.

    Args:
        model: as it was constructed, filled or not.
        source: what is to be put into it.
        registry: the plugins whose families know how others name their tensors.
        rename: as ``build`` takes it.
        drop: the same.
        on_mismatch: the same.
        min_coverage: the same.

    Raises:
        ArgumentError: a wrong argument, or one that only a model with values could follow.
        CoverageError: too little of the source fits.
    """
    family = registry.claim(model)
    matching = match(
        describe(_state(model)),
        source.tensors,
        dialects=family.renames if family is not None else None,
        rename=rename,
        drop=drop,
        on_mismatch=on_mismatch,
        min_coverage=min_coverage,
    )
    check_policies(matching.mismatched)
    for item in matching.mismatched:
        if item.policy != "skip":
            raise ArgumentError(
                "a model that is being built has no values yet that could be adapted",
                where=f"on_mismatch for {item.key!r}",
                expected="'skip' or 'error'",
                found=repr(item.policy),
                fix="surgery.build(...) without weights, then surgery.load_weights(model, source)",
            )
    return matching


def _load(
    deferred: Deferred,
    source: Weights,
    matching: Matching,
    classes: tuple[str, ...] | None,
) -> _Loaded:
    """Let the tensors of a source become those of the model."""
    state = _state(deferred.model)
    addresses = {
        id(entry.tensor): entry.address for entry in tree.index(deferred.model).tensors.values()
    }
    wanted: dict[str, list[str]] = {}
    for key, name in matching.pairs.items():
        wanted.setdefault(name, []).append(key)
    memory, lies = _Memory(), {}
    for name, value in source.read_many(wanted):
        for key in wanted[name]:
            here = state[key]
            if here.is_meta:
                deferred.put(addresses[id(here)], value if memory.take(value) else value.clone())
            else:
                with torch.no_grad():
                    here.copy_(value)
            lies[key] = here.data_ptr()
    return _Loaded(matching, lies, classes, source.notes, source.origin)


class _Memory:
    """Which stretches of memory the model has taken over: two tensors must not share any."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, int]] = []

    def take(self, tensor: torch.Tensor) -> bool:
        """Take a tensor's memory, if nobody has any of it."""
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            return False
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        place = bisect(self._taken, (start, end))
        before, after = self._taken[max(place - 1, 0) : place], self._taken[place : place + 1]
        if any(first < end and start < last for first, last in (*before, *after)):
            return False
        self._taken.insert(place, (start, end))
        return True


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a file may fill, by the names that files use; extra state is no tensor."""
    state = model.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _outcome(
    target: Target,
    num_classes: int | None,
    deferred: Deferred,
    loaded: _Loaded | None,
    initialised: tuple[str, ...],
) -> Outcome:
    """What was done, and whether every tensor has its values."""
    model = deferred.model
    entries = list(tree.index(model).of_kind("parameter", "buffer"))
    empty = [entry.address for entry in entries if entry.tensor.is_meta]
    count = sum(entry.tensor.numel() for entry in entries if entry.kind == "parameter")
    notes = [*deferred.notes]
    checks = [
        Check(
            "every tensor has values",
            not deferred.pending,
            f"{len(entries) - len(empty)} of {len(entries)}"
            + (f"; {len(empty)} were constructed on meta" if empty else ""),
        )
    ]
    if loaded is not None:
        notes += [*loaded.notes, *filter(None, [loaded.matching.undone])]
        notes += [line for line in loaded.matching.lines if not line.startswith("loaded: ")]
        notes += [f"initialised: {line}" for line in fold(initialised)]
        state = _state(model)
        moved = [key for key, place in loaded.lies.items() if state[key].data_ptr() != place]
        found = f"{loaded.matching.coverage} match {loaded.origin}"
        checks.append(Check("what was loaded is in place", not moved, found))
    title = (
        f"build({target.title!r}" + (f", num_classes={num_classes}" if num_classes else "") + ")"
    )
    counted = audit(model)
    plan = Plan(title, (), (), (0, count), notes=tuple(notes), audits=(counted, counted))
    built = Operated(over="a model that was built has no former state")
    return Outcome(model, plan, tuple(checks), operated=built)


def _proven(
    outcome: Outcome, num_classes: int, example: Any, registry: Registry
) -> tuple[Outcome, tuple[str, ...]]:
    """Look for the heads that have the number of classes which the constructor was given."""
    claimed = _claimed(outcome.model, num_classes, registry)
    if claimed:
        found = f"{', '.join(claimed)}: {num_classes}, where its family knows the heads"
        check = Check("classes", True, f"{found}, as its constructor made them")
        return replace(outcome, checks=(*outcome.checks, check)), claimed
    try:
        heads = survey(outcome.model, example, registry=registry, briefly=True).heads
    except SurgeryError as error:
        note = f"the number of classes is not verified: {error.what}"
        plan = replace(outcome.plan, notes=(*outcome.plan.notes, note))
        return replace(outcome, plan=plan), (_UNKNOWN,)
    having = tuple(head.address for head in heads if head.num_classes == num_classes)
    found = ", ".join(f"{address or 'the model'}: {num_classes}" for address in having)
    check = Check("classes", True, f"{found}, as its constructor made them")
    return (replace(outcome, checks=(*outcome.checks, check)) if having else outcome), having


def _claimed(model: nn.Module, num_classes: int, registry: Registry) -> tuple[str, ...]:
    """The layers that the model's family knows as heads, if each has a row for every class."""
    family = registry.claim(model)
    claims = () if family is None else heads_for(family, model)
    filled = [name for name, module in model.named_modules() if [*module.parameters(False)]]
    found = []
    for claim in claims:
        inside = [name for name in filled if claim.covers(name)]
        if not inside:
            continue
        # A claim names the layer, or the block that ends in it.
        sizes = {value.shape[:1] for value in model.get_submodule(inside[-1]).parameters(False)}
        if claim.factor != 1 or claim.role in FOLLOWING or sizes != {(num_classes,)}:
            return ()
        found.append(inside[-1])
    return tuple(found)


def _replaced(
    outcome: Outcome,
    num_classes: int,
    example: Any,
    generator: torch.Generator | None,
    registry: Registry,
) -> Outcome:
    """Replace the heads, where the constructor made another number of classes."""
    replaced = replace_head(
        outcome.model, num_classes, generator=generator, example=example, registry=registry
    )
    replaced.commit()
    plan = replaced.plan
    notes = (*outcome.plan.notes, _REPLACED, *plan.notes)
    steps = replace(outcome.plan, steps=plan.steps, outputs=plan.outputs, notes=notes)
    count = (outcome.plan.parameters[0], plan.parameters[1])
    audits = None if plan.audits is None else (plan.audits[1], plan.audits[1])
    return replace(
        outcome,
        model=replaced.model,
        plan=replace(
            steps, parameters=count, probes=plan.probes, example=plan.example, audits=audits
        ),
        checks=(*outcome.checks, *replaced.checks),
        new=replaced.new,
    )


def _tell(
    outcome: Outcome, loaded: _Loaded | None, num_classes: int | None, heads: tuple[str, ...]
) -> None:
    """Warn of what did not come from the source, and remember the names of the classes."""
    if loaded is None:
        return
    # Other classes than the source's are what was asked for.
    asked = tuple(f"{address}." if address else "" for address in heads)
    mismatched = loaded.matching.mismatched
    unasked = tuple(item for item in mismatched if not item.key.startswith(asked))
    said = replace(loaded.matching, mismatched=unasked).warning()
    if said is not None:
        warnings.warn(f"{outcome.plan.title}: {said}", stacklevel=3)
    if loaded.classes and num_classes in (None, len(loaded.classes)):
        remember(outcome.model, loaded.classes)
