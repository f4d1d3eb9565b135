"""Carry out a plan and verify it: the one mechanism behind every verb.

requires -> do -> ensures: a plan holds everything that can be wrong; applying it writes, checks,
and takes every write back if anything fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from surgery import tree
from surgery.errors import VerificationError
from surgery.families.registry import Registry
from surgery.operations import history, made, names
from surgery.operations.draws import Draws
from surgery.operations.journal import Journal
from surgery.operations.moving import placements, witnesses
from surgery.operations.norms import following
from surgery.operations.plan import Check, Outcome, Plan, Step, tensors_of
from surgery.operations.simulate import rehearse
from surgery.operations.undoing import Operated, configurations
from surgery.operations.verify import ModelState, verify
from surgery.operations.wrapped import within_wrappings
from surgery.operations.writes import makers
from surgery.parameters import audit


def operate(
    model: nn.Module,
    planned: Callable[[], Plan],
    *,
    dry_run: bool = False,
    generator: torch.Generator | None = None,
    registry: Registry | None = None,
) -> Outcome:
    """Plan an operation and carry it out; random numbers are drawn only where that succeeds.

    Args:
        model: the model to change.
        planned: makes the plan; it may draw first values for new parameters.
        dry_run: stop at the plan.
        generator: the caller's own source of random numbers, if any.
        registry: the plugins to ask what the parts of the model are wrapped in; those installed,
            if left out.

    Returns:
        The outcome.

    Raises:
        SurgeryError: whatever planning, applying or verifying raises. The model and every
            generator are as they were.
    """
    draws = Draws(generator)
    try:
        plan = within_wrappings(model, planned(), registry)
        if not dry_run:
            return apply(model, plan, draws)
        counted = audit(model)
        rehearsed = rehearse(tree.unwrap(model), plan.steps)
        draws.take_back()
        after = counted if rehearsed is None else audit(rehearsed)
        return Outcome(model, replace(plan, audits=(counted, after)))
    except BaseException:
        draws.take_back()
        raise


def apply(model: nn.Module, plan: Plan, draws: Draws | None = None) -> Outcome:
    """Carry out a plan and verify it.

    Args:
        model: the model the plan was made for; wrappers that allow it are passed through.
        plan: what to do.
        draws: the random numbers that were drawn for it.

    Returns:
        The outcome, with every check.

    Raises:
        PlanError: something cannot be set. Nothing was touched.
        VerificationError: a check failed. Everything was undone.
    """
    inner = tree.unwrap(model)
    rehearse(inner, plan.steps)
    root = next((step.new for step in plan.steps if step.kind == "root"), inner)
    before = ModelState.of(inner)
    counted = audit(inner)
    old = _replaced(inner, plan)
    named = names.remembered(inner)
    journal = Journal()
    try:
        for listed in (history.standing(), made.remembered(inner), made.remembered(root)):
            journal.remember(listed)
        # Values go into tensors; everything else goes through setters, which may reach any module.
        still = all(step.kind == "values" for step in plan.steps)
        if not still:
            journal.remember_modules(inner)
        for step in plan.steps:
            if isinstance(step.new, nn.Module):
                journal.remember_modules(step.new)
        journal.perform(makers(inner, plan.steps, index=before.index if still else None))
        checks = verify(root, plan, before)
        failed = [check for check in checks if not check.passed]
        if failed:
            raise _failure(plan, failed)
        index = before.index if still else tree.index(inner)
        filled = _filled(index, plan)
        operated = _operated(model, plan, journal, draws, old, filled, index)
        changed = model if root is inner else root
        plan = replace(plan, audits=(counted, counted if still else audit(changed)))
        new = _installed(inner, plan) | filled
        journal.tell_autograd()
        made.note(inner, root, plan, operated.entry)
        if plan.classes is not None:
            operated.names = named or ()
            names.remember(changed, plan.classes or None)
        return Outcome(changed, plan, checks, old, new, operated)
    except BaseException as error:
        try:
            journal.take_back()
        except BaseException:
            # Interrupted as well: it goes on where it was.
            journal.take_back()
            raise
        error.add_note(f"{plan.title} was taken back: the model is as it was")
        raise


def _failure(plan: Plan, failed: list[Check]) -> VerificationError:
    return VerificationError(
        f"{plan.title}: {failed[0].name}: {failed[0].finding}",
        where=", ".join(step.address or "(the model itself)" for step in plan.steps[:4]),
        expected="only the planned change",
        found="; ".join(f"{check.name}: {check.finding}" for check in failed),
        fix="nothing to clean up: every change was taken back",
    )


def _operated(
    model: nn.Module,
    plan: Plan,
    journal: Journal,
    draws: Draws | None,
    old: dict[str, torch.Tensor],
    filled: dict[str, torch.Tensor],
    index: tree.Index,
) -> Operated:
    """What undo will need, and the operation's place in the history."""
    inner = tree.unwrap(model)
    changes = journal.changes()
    before = {id(change.owner): change.before for change in changes if change.of_values}
    old |= {a: before[id(tensor)] for a, tensor in filled.items() if id(tensor) in before}
    root = next((step for step in plan.steps if step.kind == "root"), None)
    facts = [step for step in plan.steps if step.kind == "attribute"]
    touched = [a for step in plan.steps for a in _modules_of(step)] if root is None else [""]
    places = history.ground(inner, touched)
    new = {id(tensor) for tensor in _installed(inner, plan).values()}
    operated = Operated(
        given=model,
        changes=following((change, placements(change.after)) for change in changes),
        places=places,
        configurations=configurations(inner, [(step.module, step.path) for step in facts]),
        tensors={
            **{id(tensor): address for address, tensor in filled.items()},
            **{id(tree.get(inner, s.address)): s.address for s in plan.steps if s.kind == "flag"},
        },
        witnesses=witnesses(index, new),
        draws=draws,
        old=old,
    )
    if draws is not None:
        draws.settle()
    ground = [*places.values(), *([root.new] if root is not None else [])]
    operated.entry = history.entry(plan.title, inner, ground, operated)
    history.standing().append(operated.entry)
    return operated


def _modules_of(step: Step) -> tuple[str, ...]:
    return (step.module,) if step.kind == "attribute" else step.addresses


def _filled(index: tree.Index, plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors that got other values, by every address."""
    wanted = {address for step in plan.steps if step.kind == "values" for address in step.addresses}
    if not wanted:
        return {}
    entries = index.tensors.values()
    return {a: entry.tensor for entry in entries for a in entry.addresses if a in wanted}


def _lives_on(model: nn.Module, step: Step) -> bool:
    """Whether the model itself is a part of what takes its place."""
    return step.kind == "root" and bool(tree.index(step.new).addresses(model))


def _installed(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors that steps put somewhere, by every address."""
    new = tensors_of(plan.steps)
    if not any(_lives_on(model, step) for step in plan.steps):
        return new
    known = tree.index(model).tensors
    return {address: tensor for address, tensor in new.items() if id(tensor) not in known}


def _replaced(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for step in plan.steps:
        if step.kind in ("attribute", "flag", "values") or _lives_on(model, step):
            continue
        for address in step.addresses:
            here = tree.get(model, address)
            if isinstance(here, torch.Tensor):
                found[address] = here
            else:
                for entry in tree.index(here).tensors.values():
                    for inner in entry.addresses:
                        found[tree.join(address, inner)] = entry.tensor
    return found
