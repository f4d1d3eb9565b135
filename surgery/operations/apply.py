"""Carry out a plan, verify it, and undo it: the one mechanism behind every verb.

requires -> do -> ensures: a plan holds everything that can be wrong; applying it writes, checks,
and takes every write back if anything fails.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import UndoError, VerificationError
from surgery.graph.skeleton import is_floating
from surgery.operations import history
from surgery.operations.journal import Change, Journal
from surgery.operations.plan import Outcome, Plan, tensors_of
from surgery.operations.verify import ModelState, verify
from surgery.operations.writes import makers

Placement = tuple[torch.device, torch.dtype]


@dataclass(eq=False)
class Operated:
    """What an outcome keeps so that it can be undone; it holds the replaced parts, no copies.

    Attributes:
        journal: the writes.
        root: the model before, if the root itself was replaced.
        ground: the modules whose subtrees changed.
        entry: the operation's place in their history.
        witness: an untouched parameter, and where it was.
        placements: where each installed tensor was, by ``id``.
        over: why it cannot be undone any more, or empty.
    """

    journal: Journal
    root: nn.Module
    ground: tuple[nn.Module, ...]
    entry: history.Entry
    witness: tuple[weakref.ref[torch.Tensor], Placement] | None
    placements: dict[int, Placement] = field(default_factory=dict)
    over: str = ""

    def release(self, reason: str) -> None:
        """Let go of everything but the history."""
        self.over = reason
        self.journal = Journal()
        self.placements = {}
        self.ground = ()


def apply(model: nn.Module, plan: Plan) -> Outcome:
    """Carry out a plan and verify it.

    Args:
        model: the model the plan was made for; wrappers that allow it are passed through.
        plan: what to do.

    Returns:
        The outcome, with every check.

    Raises:
        VerificationError: a check failed. Everything was undone.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
    """
    inner = tree.unwrap(model)
    root = next((step.new for step in plan.steps if step.kind == "root"), None)
    before = ModelState.of(inner)
    old = _replaced(inner, plan)
    ground = history.ground(inner, plan.steps)
    journal = Journal()
    journal.perform(makers(inner, plan.steps))
    try:
        checks = verify(inner if root is None else root, plan, before)
        failed = [check for check in checks if not check.passed]
        if failed:
            raise VerificationError(
                f"{plan.title}: {failed[0].name}: {failed[0].finding}",
                where=", ".join(step.address or "(the model itself)" for step in plan.steps[:4]),
                expected="only the planned change",
                found="; ".join(f"{check.name}: {check.finding}" for check in failed),
                fix="nothing to clean up: every change was taken back",
            )
        after = ground + history.ground(inner if root is None else root, plan.steps)
        new = tensors_of(plan.steps)
        operated = Operated(
            journal,
            inner,
            after,
            history.register(plan.title, {id(m): m for m in after}.values()),
            _witness(inner, before, new),
            {id(tensor): (tensor.device, tensor.dtype) for tensor in new.values()},
        )
    except BaseException:
        journal.take_back()
        raise
    return Outcome(model if root is None else root, plan, checks, old, new, operated)


def _replaced(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for step in plan.steps:
        if step.kind in ("attribute", "flag"):
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


def _witness(
    model: nn.Module, before: ModelState, new: Mapping[str, torch.Tensor]
) -> tuple[weakref.ref[torch.Tensor], Placement] | None:
    installed = {id(tensor) for tensor in new.values()}
    for parameter in model.parameters():
        if is_floating(parameter.dtype) and id(parameter) not in installed:
            return weakref.ref(parameter), (parameter.device, parameter.dtype)
    return None


def undo(outcome: Outcome) -> nn.Module:
    """Take an operation back; see ``Outcome.undo``."""
    operated = outcome.operated
    if operated is None:
        raise UndoError(
            "there is nothing to undo: this was a dry run",
            where=outcome.plan.title,
            fix="call the verb without dry_run=True to carry the plan out",
        )
    if operated.over:
        raise UndoError(f"this outcome cannot be undone: {operated.over}", where=outcome.plan.title)
    later = history.later_than(operated.entry, operated.ground)
    if later is not None:
        raise UndoError(
            f"{later.title} was done after it, on the same part of the model",
            where=outcome.plan.title,
            expected="the last operation is undone first",
            found=f"{later.title} still stands",
            fix=f"undo {later.title} first, then this",
        )
    changes = list(operated.journal.changes())
    for change in changes:
        _check_untouched(outcome, change)
    _put_back(changes, _conversions(operated, changes))
    history.strike(operated.entry, operated.ground)
    operated.release("it was undone already")
    return operated.root if operated.root is not tree.unwrap(outcome.model) else outcome.model


def _check_untouched(outcome: Outcome, change: Change) -> None:
    """Refuse where somebody replaced what the operation had put there."""
    now, installed = change.now, change.after
    same = now is installed
    if isinstance(installed, torch.Tensor):
        # Moving a model makes new buffers, and sometimes new parameters.
        same = isinstance(now, torch.Tensor) and now.shape == installed.shape
    elif not isinstance(installed, nn.Module):
        same = True
    if not same:
        raise UndoError(
            f"{change.key!r} was replaced by something else since",
            where=outcome.plan.title,
            expected=type(installed).__name__,
            found=type(now).__name__,
            fix="put the operation's own part back, or keep the model as it is",
        )


def _conversions(
    operated: Operated, changes: list[Change]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tensors that come back and must move to where the model went: (tensor, old, new data)."""
    found: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for change in changes:
        move = _move(operated, change)
        if move is None:
            continue
        for tensor in _tensors(change.before):
            (old_device, old_dtype), (device, dtype) = move
            target = dtype if tensor.dtype == old_dtype else tensor.dtype
            if tensor.device == old_device and (device, target) != (tensor.device, tensor.dtype):
                found[id(tensor)] = (tensor, tensor.data, tensor.data.to(device, target))
    return list(found.values())


def _move(operated: Operated, change: Change) -> tuple[Placement, Placement] | None:
    """How the part of the model around a change moved since: from, to."""
    for installed, now in zip(_tensors(change.after), _tensors(change.now), strict=False):
        was = operated.placements.get(id(installed))
        if was is not None and is_floating(was[1]):
            return was, (now.device, now.dtype)
    if operated.witness is not None:
        witness = operated.witness[0]()
        if witness is not None:
            return operated.witness[1], (witness.device, witness.dtype)
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()


def _put_back(
    changes: list[Change], conversions: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> None:
    """Undo every change, or none."""
    present = [(change, change.now) for change in changes]
    try:
        for tensor, _, data in conversions:
            tensor.data = data
        for change in reversed(changes):
            change.put(change.before)
    except BaseException:
        for change, value in present:
            change.put(value)
        for tensor, data, _ in conversions:
            tensor.data = data
        raise
