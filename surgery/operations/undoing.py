"""Undo an operation: put back what it changed, moved to where the model has gone since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError, UndoError
from surgery.operations import history, made
from surgery.operations.content import Content
from surgery.operations.draws import Draws
from surgery.operations.journal import Change, Journal
from surgery.operations.moving import Converter, Placement
from surgery.operations.names import remember
from surgery.operations.plan import Outcome
from surgery.operations.writes import member

Installed: TypeAlias = Mapping[str, Placement]

_COPY = "it is a copy, and only the operation itself can be taken back"


@dataclass(eq=False)
class Operated:
    """What an outcome keeps so that it can be undone: the replaced parts, and no copies.

    Attributes:
        given: the model as the caller gave it, in its wrapper if it had one.
        changes: every entry that changed, with where the tensors in it were placed.
        places: the modules on the way to the changes, by address.
        configurations: by module address and path: the objects on the way to facts.
        tensors: by ``id`` of a tensor whose values or ``requires_grad`` changed: its address.
        witnesses: untouched tensors by address, one for each device and dtype, and where they were.
        draws: the random numbers that were drawn.
        entry: the operation's place in the history.
        also: what the same operation did to another model, undone with it.
        old: the mapping that the outcome shows.
        followed: by the optimizer that followed it: what that was before.
        names: the class names that were remembered of the model before, empty for none; None
            where the operation is not about classes.
        over: why it cannot be undone any more, or empty.
    """

    given: nn.Module | None = None
    changes: tuple[tuple[Change, Installed], ...] = ()
    places: Mapping[str, nn.Module] = field(default_factory=dict)
    configurations: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    tensors: Mapping[int, str] = field(default_factory=dict)
    witnesses: Installed = field(default_factory=dict)
    draws: Draws | None = None
    entry: history.Entry | None = None
    also: tuple[Outcome, ...] = ()
    old: dict[str, torch.Tensor] = field(default_factory=dict)
    followed: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)
    names: tuple[str, ...] | None = None
    over: str = ""

    def release(self, reason: str) -> None:
        """Let go of everything; ``reason`` says why nothing can be undone any more."""
        self.over = reason
        self.given = None
        self.changes = ()
        self.places = {}
        self.configurations = {}
        self.tensors = {}
        self.draws = None
        self.also = ()

    def commit(self) -> None:
        """Let go of everything, the old tensors that the outcome shows included."""
        if not self.over:
            for other in self.also:
                other.commit()
            self.release("it was committed")
            self.old.clear()
            self.followed.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        # What to undo is tied to the very objects of the model: a copy or a pickle has others.
        return _released, (self.over or _COPY,)


def _released(reason: str) -> Operated:
    return Operated(over=reason)


def undo(outcome: Outcome) -> nn.Module:
    """Take an operation back, all of it or nothing; see ``Outcome.undo``."""
    operated = _undoable(outcome)
    # What the other model needs goes first: it gets back what this one holds now.
    undone = [_Undone(each) for each in (*operated.also, outcome)]
    draws, journal = Draws(), Journal()
    try:
        for each in undone:
            each.remember(journal)
        for each in undone:
            each.convert(journal)
        for each in undone:
            each.put(journal)
        for each in undone:
            each.close()
        journal.tell_autograd()
        return undone[-1].given
    except BaseException as error:
        draws.take_back()
        journal.take_back()
        error.add_note(f"{outcome.plan.title} still stands: undoing it was given up")
        raise


class _Undone:
    """One outcome on its way back. Making it checks everything and touches nothing."""

    def __init__(self, outcome: Outcome) -> None:
        self.operated = operated = _undoable(outcome)
        self.title = outcome.plan.title
        if operated.given is None or operated.entry is None:
            raise UndoError(
                "this outcome cannot be undone: it holds no model",
                where=self.title,
                fix="keep the outcome that the verb returned, and call its undo()",
            )
        self.given, self.entry = operated.given, operated.entry
        self.root = tree.unwrap(operated.given)
        _check_places(outcome, self.root, operated)
        self.changes = [(_present(outcome, c, self.root), i) for c, i in operated.changes]
        for change, _ in self.changes:
            _check_untouched(outcome, change)
        self.values: list[Any] = []

    def remember(self, journal: Journal) -> None:
        lists = (history.standing(), made.remembered(self.root))
        for owner in (self.operated, *lists, *(c.owner for c, _ in self.changes)):
            journal.remember(owner)

    def convert(self, journal: Journal) -> None:
        converter = Converter(journal, self.root, self.operated.witnesses, self.title)
        self.values = [converter.converted(change, places) for change, places in self.changes]

    def put(self, journal: Journal) -> None:
        for (change, _), value in reversed(list(zip(self.changes, self.values, strict=True))):
            if change.of_values:
                journal.fill(change.owner, _given(value))
            else:
                change.put(value)

    def close(self) -> None:
        history.standing().remove(self.entry)
        made.forget(self.root, self.entry)
        if self.operated.draws is not None:
            self.operated.draws.give_back()
        if self.operated.names is not None:
            remember(self.given, self.operated.names or None)
        self.operated.release("it was undone already")


def _given(value: torch.Tensor) -> Content:
    """Old values, which only what is undone holds; nobody may hold them beside the tensor."""
    return Content(lambda: value, fresh=True)


def _undoable(outcome: Outcome) -> Operated:
    operated, title = outcome.operated, outcome.plan.title
    if operated is None:
        raise UndoError(
            "there is nothing to undo: this was a dry run",
            where=title,
            fix="call the verb without dry_run=True to carry the plan out",
        )
    if operated.over == _COPY:
        raise UndoError(
            "a copy cannot be undone: what it would put back belongs to the original model",
            where=title,
            expected="the outcome that the verb returned",
            found="a copied or unpickled outcome",
            fix="call undo() on the outcome that the verb returned",
        )
    if operated.over:
        raise UndoError(
            f"this outcome cannot be undone: {operated.over}",
            where=title,
            fix="nothing to do" if "undone" in operated.over else "build the model anew",
        )
    later = operated.entry and history.later_than(operated.entry)
    if later:
        keeper = later.keeper()
        stays = "its outcome is gone" if keeper is None else keeper.over
        raise UndoError(
            f"{later.title} was done after it, on the same part of the model",
            where=title,
            expected="the last operation is undone first",
            found=f"{later.title} still stands" + (f", for good: {stays}" if stays else ""),
            fix="build the model anew" if stays else f"undo {later.title} first, then this",
        )
    return operated


def _check_places(outcome: Outcome, root: nn.Module, operated: Operated) -> None:
    """Refuse where a module or configuration that was operated on is not there any more."""
    for address, module in operated.places.items():
        if _at(root, address) is not module:
            raise _replaced(outcome, address, module, _at(root, address))
    for (address, path), wanted in operated.configurations.items():
        found: Any = _at(root, address)
        for name in path.split("."):
            found = member(found, name) if found is not None else None
        if found is not wanted:
            raise _replaced(outcome, tree.join(address, path), wanted, found)


def _at(root: nn.Module, address: str) -> Any:
    try:
        return tree.get(root, address)
    except AddressError:
        return None


def _present(outcome: Outcome, change: Change, root: nn.Module) -> Change:
    """The change, on the parameter that is there now where moving the model made a new one."""
    operated = outcome.operated
    address = operated.tensors.get(id(change.owner)) if operated is not None else None
    if address is None:
        return change
    here = _at(root, address)
    if not isinstance(here, torch.Tensor):
        raise _replaced(outcome, address, change.owner, here)
    return change if here is change.owner else replace(change, owner=here)


def _check_untouched(outcome: Outcome, change: Change) -> None:
    """Refuse where somebody replaced what the operation had put there."""
    now, installed = change.now, change.after
    if isinstance(installed, torch.Tensor):
        # Moving a model makes new buffers, and sometimes new parameters.
        same = isinstance(now, torch.Tensor) and now.shape == installed.shape
    else:
        same = now is installed or not isinstance(installed, nn.Module)
    if not same:
        raise _replaced(outcome, str(change.key), installed, now)


def _replaced(outcome: Outcome, where: str, installed: object, now: object) -> UndoError:
    return UndoError(
        f"{where!r} was replaced by something else since",
        where=outcome.plan.title,
        expected=_brief(installed),
        found="nothing" if now is None else _brief(now),
        fix="put the operation's own part back, or keep the model as it is",
    )


def _brief(value: object) -> str:
    shape = f" {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    return f"{type(value).__name__}{shape}"


def configurations(
    model: nn.Module, facts: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Any]:
    """The objects on the way to facts, so that undo can tell whether they are still there.

    Args:
        model: the model after the operation.
        facts: the address of a module, and the path of a fact from there.
    """
    found: dict[tuple[str, str], Any] = {}
    for address, path in facts:
        names = path.split(".")
        here: Any = tree.get_module(model, address)
        for length, name in enumerate(names[:-1], 1):
            here = member(here, name)
            found[address, ".".join(names[:length])] = here
    return found
