"""What following an operation did to an optimizer, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from surgery.operations.plan import Outcome
from surgery.shown import Shown

What: TypeAlias = Literal["replaced", "added", "removed", "refilled", "left out"]
StateNow: TypeAlias = Literal["carried", "starts anew", "restored", "gone", "none"]


@dataclass(frozen=True)
class Moved:
    """What became of one parameter in an optimizer.

    Attributes:
        address: where the parameter is, or was, in the model.
        group: the number of its group, None where it is in none now.
        what: ``replaced`` (it took the place of another), ``added``, ``removed``, ``refilled``
            (the same parameter with other values), or ``left out`` (nothing says where it goes).
        state: ``carried``, ``starts anew`` (the optimizer makes it at its next step),
            ``restored``, ``gone`` with the parameter, or ``none``: there was none before either.
        step: the step count that its state goes on with, where it has one.
        entries: along the axis that changed, how many entries have the state they had, and how
            many there are.
        reason: why the state is not carried, or why the parameter is where it is.
    """

    address: str
    group: int | None
    what: What
    state: StateNow
    step: float | None = None
    entries: tuple[int, int] | None = None
    reason: str = ""

    def __str__(self) -> str:
        where = "in no group" if self.group is None else f"group {self.group}"
        kept = "" if self.entries is None else f", {self.entries[0]} of {self.entries[1]} entries"
        step = "" if self.step is None else f", at step {self.step:g}"
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.address} ({where}) {self.what}, state {self.state}{kept}{step}{reason}"


@dataclass(frozen=True, eq=False)
class Followed(Shown):
    """What following an operation did to an optimizer.

    Attributes:
        title: the operation that was followed.
        optimizer: the class of the optimizer.
        undone: whether it was followed back, after ``outcome.undo()``.
        moved: every parameter that the operation concerns.
        untouched: how many parameters are in the optimizer as before, with the state they had.
        averages: for each averaged copy of the model, the outcome of the same operation on it.
        notes: what a person should know.
    """

    title: str
    optimizer: str
    undone: bool
    moved: tuple[Moved, ...]
    untouched: int
    averages: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
