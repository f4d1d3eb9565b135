"""A transplant that fails anywhere leaves both models, and the history, as they were."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import surgery
from surgery.operations import history
from surgery.operations.plan import Outcome
from tests.operations.faults import events_of, fails_at
from tests.operations.state import differences, state_of
from tests.operations.test_transplant import shaken


class Little(nn.Module):
    """One layer, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)


@pytest.mark.parametrize("how", ["copy", "share", "move"])
def test_a_fault_in_doing_or_undoing_it(how: Any, monkeypatch: pytest.MonkeyPatch):
    from surgery.operations import apply as applying

    monkeypatch.setattr(history, "_standing", [])
    monkeypatch.setattr(applying, "rehearse", lambda *_: None)
    donor, recipient = shaken(Little()), Little()

    def transplanted() -> Outcome:
        return surgery.transplant(donor, recipient, {"norm": "norm"}, how=how, freeze=True)

    def everything() -> dict[str, object]:
        return state_of(recipient, donor, history.standing())

    writing = ("apply", "undoing", "journal", "content", "transplant")
    events = [
        event
        for event in events_of(lambda: transplanted().undo())
        if (event.kind, event.count) == ("line", 1) and event.where.split(".py")[0] in writing
    ]
    assert events
    for event in events:
        before = everything()
        made: list[Outcome] = []
        if fails_at(event, lambda made=made: made.append(transplanted())):
            assert not differences(before, everything()), event
            continue
        done = everything()
        if fails_at(event, made[0].undo):
            assert not differences(done, everything()), event
        if not made[0].operated.over:
            made[0].undo()
