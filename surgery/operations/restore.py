"""Make a saved model again, in another process or in a model that is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.deferred import Deferred
from surgery.errors import ArgumentError, VerificationError
from surgery.families.registry import Registry, check_registry, in_force
from surgery.operations import made, names
from surgery.operations.apply import apply, operate
from surgery.operations.attached import Headed
from surgery.operations.build import constructed
from surgery.operations.content import Content
from surgery.operations.draws import Draws
from surgery.operations.plan import Check, Outcome, Plan, Step
from surgery.operations.record import Record, read_record
from surgery.operations.restoring import Restoring, differences, laid_out
from surgery.operations.size import growth
from surgery.operations.target import Target, resolve_target
from surgery.operations.undoing import Operated
from surgery.weights.source import read
from surgery.weights.value import Weights

_SHOWN = 4


def restore(
    target: str | Callable[..., nn.Module] | nn.Module,
    path: str | os.PathLike[str],
    *,
    trusted: Iterable[type[nn.Module]] = (),
    mmap: bool = False,
    registry: Registry | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Outcome:
    """Make a model that ``surgery.save`` wrote again, exactly.

    What the target makes is compared with what the file says of every module, and changed where
    it differs: other heads, replaced parts, attributes, ties, frozen layers, layers that stay in
    eval mode, class names. The operations are not done again, so that neither examples nor
    plugins are needed, and nothing is drawn at random. The result is compared with the file.

    A target that is built is constructed without filling anything, and the tensors of the file
    become its parameters. It has the train and eval modes of the saved model, and is on the CPU.
    A target that is a model is changed in place, verified and undoable like by every operation;
    it stays on its device and in its own mode.

    The file is not trusted. It may decide on values: plain attributes, tensors, and modules of
    classes of ``torch.nn``, of those that the target has, and of ``trusted``. Such modules are
    put together as unpickling does, without their constructors. Nothing is imported or run.

    Args:
        target: what makes the model as it was before it was changed: a catalog name
            (``"package:name"``), ``"package.module:callable"``, a callable; or a model.
        path: a file that ``surgery.save`` wrote.
        trusted: further classes of modules that the file may have parts of.
        mmap: map the file instead of copying it; a file that is cut short in place then ends
            the process.
        registry: the plugins to ask for catalogs, and what layers of a model are wrapped in;
            those installed, if left out.
        dry_run: for a model: return the plan in an outcome, and touch nothing.
        options: arguments for the callable.

    Returns:
        The outcome: ``.model``, what was changed for it (``.plan``), and the checks. ``undo()``
        works where the target was a model.

    Raises:
        ArgumentError: an unknown name, or a wrong argument.
        PlanError: the target differs in what a file cannot make (the error lists it), its
            constructor raised, or ``surgery.save`` did not write the file. Nothing was touched.
        WeightsError: the file cannot be read, is broken, or contradicts itself.
        VerificationError: the result is not what the file says. A model is as it was.

    Example:
        >>> import tempfile, torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
        >>> outcome = surgery.freeze(surgery.replace_head(model, 3, heads="2").model, "1")
        >>> def make():
        ...     return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = surgery.save(model, f"{folder}/model.safetensors").path
        ...     again = surgery.restore(make, path).model
        >>> again[2].out_features, again.train()[1].training
        (3, False)
    """
    check_registry(registry)
    weights = read(path, mmap=mmap)
    record = read_record(weights.metadata, weights.origin)
    if isinstance(target, nn.Module):
        _check_options(options)
        return _into(target, record, weights, trusted, dry_run, registry)
    if dry_run:
        raise ArgumentError(
            "a model that is yet to be built has nothing to plan for",
            where="dry_run",
            expected="a model as the target",
            found=repr(target),
            fix="surgery.restore(target, path) touches no model that is there",
        )
    known = in_force(registry)
    resolved = _headed(resolve_target(target, known), record)
    draws = Draws()
    try:
        # Parameters made in inference mode could never be trained.
        with torch.inference_mode(False):
            return _built(resolved, record, weights, trusted, options)
    except BaseException:
        draws.take_back()
        raise


def _check_options(options: dict[str, Any]) -> None:
    if options:
        raise ArgumentError(
            "a model is there already, and takes no arguments",
            where=", ".join(options),
            expected="options with a callable or a name as the target",
            found="a model",
            fix="surgery.restore(model, path)",
        )


def _title(record: Record, weights: Weights) -> str:
    count = len(record.operations)
    return f"restore({weights.origin!r}, {count} operation{'s' * (count != 1)})"


def _headed(target: Target, record: Record) -> Target:
    """What makes the saved model as it was before: with a place for a head that was attached."""
    if record.portrait.modules[""].form.kind != tree.class_name(Headed):
        return target

    def make(*args: Any, **options: Any) -> nn.Module:
        made = target.factory(*args, **options)
        return made if isinstance(made, Headed) else Headed(made, nn.Identity())

    return Target(target.title, make)


def _built(
    target: Target,
    record: Record,
    weights: Weights,
    trusted: Iterable[type[nn.Module]],
    options: dict[str, Any],
) -> Outcome:
    """Build what the target makes, and change it."""
    deferred, _ = constructed(target, None, options, "restore")
    todo = Restoring(deferred.model, record, weights, trusted, waiting=True)
    plan = _plan(deferred.model, todo, record, weights, deferred.notes)
    outcome = apply(deferred.model, plan)
    outcome.commit()
    inner = tree.unwrap(outcome.model)
    _fill(inner, deferred, todo, record, weights)
    for address, module in tree.walk(inner):
        # What the file leaves out is found by the comparison below.
        placed = todo.there.get(address)
        if placed is not None:
            module.training = placed.training
    check = _compared(record, inner, modes=True)
    if not check.passed:
        raise _failure(check, weights)
    names.remember(inner, record.classes)
    _owe(inner, record, plan)
    checks = (*outcome.checks, check)
    restored = Operated(over="a model that was built has no former state")
    return replace(outcome, checks=checks, operated=restored)


def _plan(
    model: nn.Module,
    todo: Restoring,
    record: Record,
    weights: Weights,
    notes: Iterable[str] = (),
    values: tuple[Step, ...] = (),
) -> Plan:
    steps = (*todo.steps, *values)
    return Plan(
        _title(record, weights),
        steps,
        (),
        growth(model, steps),
        classes=record.classes or (),
        notes=(*notes, *todo.notes),
    )


def _fill(
    model: nn.Module, deferred: Deferred, todo: Restoring, record: Record, weights: Weights
) -> None:
    """Give every tensor that stays its values, in the memory order of the saved model."""
    for first, value in weights.read_many(todo.values):
        here = todo.installed[first]
        if here.is_meta:
            deferred.put(todo.values[first][0], value)
        else:
            with torch.no_grad():
                here.copy_(value)
        stride = record.strides.get(first)
        if not here.is_contiguous() if stride is None else here.stride() != stride:
            here.data = laid_out(here.data, stride, first)
    waiting = [name for name in deferred.pending if _is_empty(model, name)]
    if waiting:
        # In no state dict, and made by the constructor.
        deferred.fill(waiting)


def _is_empty(model: nn.Module, name: str) -> bool:
    here = tree.index(model)
    return any(name in entry.addresses and entry.tensor.is_meta for entry in here.tensors.values())


def _owe(model: nn.Module, record: Record, plan: Plan) -> None:
    """Let the model know of the operations that made it, as the saved one did."""
    held = made.remembered(model)
    mine = held.pop()
    *before, last = record.operations or (mine,)
    # What differs from the target is what they changed together.
    held += [*before, replace(last, touched=mine.touched, serial=mine.serial)]


def _into(
    model: nn.Module,
    record: Record,
    weights: Weights,
    trusted: Iterable[type[nn.Module]],
    dry_run: bool,
    registry: Registry | None,
) -> Outcome:
    """Change a model that is there."""
    tree.check_model(model)
    tree.check_changeable(model)
    inner = tree.unwrap(model)
    todo: list[Restoring] = []

    def planned() -> Plan:
        todo.append(Restoring(inner, record, weights, trusted, waiting=False))
        values = (
            Step("values", addresses, "", weights.origin, _content(first, weights))
            for first, addresses in todo[0].values.items()
        )
        return _plan(inner, todo[0], record, weights, values=tuple(values))

    outcome = operate(model, planned, dry_run=dry_run, registry=registry)
    if dry_run:
        return outcome
    for module, placed in todo[0].made():
        if placed.still:
            module.training = False
    check = _compared(record, outcome.model, modes=False)
    if not check.passed:
        outcome.undo()
        raise _failure(check, weights)
    return replace(outcome, checks=(*outcome.checks, check))


def _content(first: str, weights: Weights) -> Content:
    return Content(lambda: weights.read(first))


def _compared(record: Record, model: nn.Module, *, modes: bool) -> Check:
    wrong = list(differences(record, tree.unwrap(model), modes=modes))
    finding = f"{len(record.portrait.modules)} modules, {len(record.portrait.tensors)} tensors"
    if wrong:
        finding = "; ".join(wrong[:_SHOWN]) + (" ..." if len(wrong) > _SHOWN else "")
    return Check("as it was saved", not wrong, finding)


def _failure(check: Check, weights: Weights) -> VerificationError:
    return VerificationError(
        "the restored model is not what the file says",
        where=weights.origin,
        expected="the model that was saved",
        found=check.finding,
        fix="surgery.restore(factory, path) with the factory and the versions it was saved with",
    )
