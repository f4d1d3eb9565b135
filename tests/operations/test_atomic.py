"""Whatever fails, and wherever: the model is bit for bit as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import PlanError, VerificationError
from surgery.operations import history
from surgery.operations.apply import apply
from surgery.operations.journal import Journal
from surgery.operations.plan import Check, Outcome, Plan
from tests.operations.cases import CASES, Branches, Meddling, build
from tests.operations.faults import Event, events_of, fails_at
from tests.operations.state import differences, state_of

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")


@pytest.fixture(autouse=True)
def _no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations of other tests do not come and go with the garbage."""
    monkeypatch.setattr(history, "_standing", [])


# What writes, and not only reads: there both the first and the last time counts.
WRITING = ("apply", "undoing", "journal", "history", "moving", "draws", "carry", "writes")


def chosen(events: list[Event], every: bool) -> list[Event]:
    """All events, or one of each sort that is not only another way to stop at a line."""
    return [
        event
        for event in events
        if every
        or (
            (not event.kind.startswith("c_") or event.where.endswith("setattr"))
            and (event.count == 1 or event.where.split(".py")[0] in WRITING)
        )
    ]


def everything(model: nn.Module, plan: Plan) -> dict[str, object]:
    """The model, what is about to be installed, and the history of operations."""
    return state_of(model, *(step.new for step in plan.steps), history.standing())


def check_faults(
    events: list[Event], action: Callable[[], object], now: Callable[[], dict[str, object]]
) -> None:
    """Run an action once for each fault: it must get out, and nothing may be different."""
    before = now()
    assert events
    for event in events:
        assert fails_at(event, action), f"{event} did not come again"
        assert not differences(before, now()), event


@contextmanager
def recorded_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No rehearsal, and recordings answer as they did before: they take nearly all of the time."""
    from surgery.operations import apply as applying
    from surgery.operations import verify

    record, known = verify.outputs_after, {}

    def outputs_after(model: nn.Module, *arguments: Any) -> Any:
        if id(model) not in known:
            known[id(model)] = record(model, *arguments)
        return known[id(model)]

    with monkeypatch.context() as patch:
        patch.setattr(verify, "outputs_after", outputs_after)
        patch.setattr(applying, "rehearse", lambda *_: None)
        yield


def check_apply(name: str, every: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    plan = CASES[name].operate(model, dry_run=True).plan
    done: list[Outcome] = []

    def action() -> None:
        done.append(apply(model, plan))

    def events() -> list[Event]:
        for _ in range(2):
            found = events_of(action)
            done.pop().undo()
        return found

    before = everything(model, plan)
    with recorded_once(monkeypatch):
        outside = events()
        check_faults(chosen(outside, every), action, lambda: everything(model, plan))
    sorts = {event[:2] for event in outside}
    inside = [event for event in events() if event[:2] not in sorts]
    if not every:
        inside = [event for event in inside if event.kind == "line"]
    if plan.outputs:
        check_faults(inside, action, lambda: everything(model, plan))
    assert not differences(before, everything(model, plan))


def check_undo(name: str, every: bool, meanwhile: Callable[[nn.Module], object]) -> None:
    def changed() -> tuple[nn.Module, dict[str, object], Outcome]:
        model = build(name)
        plan = CASES[name].operate(model, dry_run=True).plan
        before = state_of(model, process=False)
        outcome = apply(model, plan)
        meanwhile(outcome.model)
        return model, before, outcome

    changed()[2].undo()
    events = events_of(changed()[2].undo)
    model, before, outcome = changed()
    others = [outcome.operated, model, outcome.plan.steps, history.standing()]
    check_faults(chosen(events, every), outcome.undo, lambda: state_of(outcome.model, *others))
    assert outcome.undo() is model
    if meanwhile is nothing:
        assert not differences(before, state_of(model, process=False))


def nothing(model: nn.Module) -> None:
    """Nothing happens between apply and undo."""


@pytest.mark.parametrize("name", CASES)
def test_a_fault_anywhere_in_apply_leaves_the_model_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_apply(name, False, monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_a_fault_anywhere_in_undo_leaves_the_changed_model_as_it_was(name: str) -> None:
    check_undo(name, every=False, meanwhile=nothing)


@pytest.mark.parametrize(
    ("name", "target"),
    [("branches", torch.double), ("branches", "meta"), ("recurrent", "meta"), ("freeze", "meta")],
    ids=str,
)
def test_a_fault_in_undo_of_a_model_that_moved_leaves_it_as_it_was(name: str, target: Any) -> None:
    check_undo(name, every=False, meanwhile=lambda model: model.to(target))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_fault_there_is_leaves_the_model_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_apply(name, True, monkeypatch)
    check_undo(name, every=True, meanwhile=nothing)


def check_verb(every: bool) -> None:
    model, example = build("branches"), torch.ones(3, 8)
    names = ["a", "b", "c"]
    generator = torch.Generator().manual_seed(1)
    outcomes: list[Outcome] = []

    def action() -> None:
        outcomes.append(
            surgery.replace_head(model, classes=names, example=example, generator=generator)
        )

    def now() -> dict[str, object]:
        return state_of(model, example, names) | {"own": generator.get_state().tolist()}

    for _ in range(2):
        events = events_of(action)
        outcomes.pop().undo()
    before = now()
    wanted = [event for event in events if every or "write" in event.kind]
    lines = [event for event in events if event.kind == "line" and event.count == 1]
    check_faults(wanted + lines[:: 1 if every else 12], action, now)
    assert not differences(before, now())


def test_a_fault_while_planning_leaves_model_arguments_and_generators_as_they_were() -> None:
    check_verb(every=False)


@pytest.mark.slow
def test_every_fault_of_a_verb_leaves_model_arguments_and_generators_as_they_were() -> None:
    check_verb(every=True)


def test_the_enumeration_sees_every_kind_of_write() -> None:
    model = build("branches")
    plan = CASES["branches"].operate(model, dry_run=True).plan
    done: list[Outcome] = []
    kinds = {event.kind for event in events_of(lambda: done.append(apply(model, plan)))}
    assert {"line", "c_call", "c_return", "assignment call", "assignment return"} <= kinds
    assert events_of(done[0].undo)
    drawn = events_of(lambda: surgery.replace_head(model, 7, example=torch.ones(3, 8)))
    assert any("uniform_" in event.where for event in drawn if "write" in event.kind)


def test_a_fault_without_taking_back_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("branches")
    plan = CASES["branches"].operate(model, dry_run=True).plan
    monkeypatch.setattr(Journal, "take_back", lambda self: None)
    monkeypatch.setattr("surgery.operations.apply.verify", _failing)
    before = state_of(model)
    with pytest.raises(VerificationError):
        apply(model, plan)
    assert any("fc" in difference for difference in differences(before, state_of(model)))


def _failing(*_: Any) -> tuple[Check, ...]:
    return (Check("outputs", True, "fine"), Check("ties", False, "one was cut"))


@pytest.mark.parametrize("name", CASES)
def test_a_failed_check_takes_everything_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    plan = CASES[name].operate(model, dry_run=True).plan
    before = everything(model, plan)
    monkeypatch.setattr("surgery.operations.apply.verify", _failing)
    with pytest.raises(VerificationError, match="ties: one was cut") as caught:
        apply(model, plan)
    assert any("was taken back" in note for note in caught.value.__notes__)
    assert not differences(before, everything(model, plan))


@pytest.mark.parametrize("name", ["branches", "modules", "root replaced"])
def test_an_interruption_while_taking_back_does_not_stop_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    plan = CASES[name].operate(model, dry_run=True).plan
    monkeypatch.setattr("surgery.operations.apply.verify", _failing)

    def action() -> None:
        with pytest.raises(VerificationError):
            apply(model, plan)

    # A second exception before taking back has begun is beyond what Python can catch.
    events = [e for e in events_of(action) if e.where.startswith("journal")]
    check_faults(chosen(events, every=False), action, lambda: everything(model, plan))


class Fickle(nn.Module):
    """Gives another shape once the head was really replaced, as no plan can foresee."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc, self.num_classes = nn.Linear(8, 8), nn.Linear(8, 5), 5
        self.asked = _Counter()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.trunk(x))[:, : self.asked.next_size()]


class _Counter:
    """Shared by every copy of the model, so that it can tell the recordings apart."""

    def __init__(self) -> None:
        self.calls = 0
        self.limit = 4

    def __deepcopy__(self, memo: object) -> _Counter:
        return self

    def next_size(self) -> int:
        self.calls += 1
        return 1000 if self.calls <= self.limit else 2


def test_a_model_that_turns_out_otherwise_is_taken_back() -> None:
    model, example = Fickle(), torch.ones(3, 8)
    before = state_of(model.fc, model.trunk, example)
    with pytest.raises(VerificationError) as caught:
        surgery.replace_head(model, 7, example=example)
    assert model.asked.calls > model.asked.limit
    assert "expected float32[3, 7]" in str(caught.value)
    assert "every change was taken back" in str(caught.value)
    assert not differences(before, state_of(model.fc, model.trunk, example))
    assert model.num_classes == 5


def test_what_a_setter_writes_elsewhere_is_taken_back_and_undone() -> None:
    model = Meddling()
    before = state_of(model, process=False)
    outcome = surgery.replace_head(model, 7, example=torch.ones(3, 8))
    assert model.trunk.seen_classes == 7
    assert model.sizes == [5, 7]
    outcome.undo()
    assert not differences(before, state_of(model, process=False))


class Stubborn(Branches):
    """A setter that raises, once the model is really changed."""

    armed = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "num_classes" and Stubborn.armed:
            raise RuntimeError("no")
        super().__setattr__(name, value)


def test_a_setter_that_raises_is_found_while_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stubborn()
    before = state_of(model)
    monkeypatch.setattr(Stubborn, "armed", True)
    with pytest.raises(PlanError, match="no"):
        surgery.replace_head(model, 7, example=torch.ones(3, 8))
    assert not differences(before, state_of(model))


def test_a_setter_that_raises_later_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stubborn()
    plan = surgery.replace_head(model, 7, example=torch.ones(3, 8), dry_run=True).plan
    before = state_of(model)
    monkeypatch.setattr("surgery.operations.apply.rehearse", lambda *_: None)
    monkeypatch.setattr(Stubborn, "armed", True)
    with pytest.raises(RuntimeError, match="no") as caught:
        apply(model, plan)
    assert any("was taken back" in note for note in caught.value.__notes__)
    assert not differences(before, state_of(model))
