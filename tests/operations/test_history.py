"""The last operation is undone first, through whichever part of a model it was done."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import SurgeryError
from surgery.operations import history
from surgery.operations.plan import Outcome
from tests.operations.cases import Branches, branches, refused
from tests.operations.state import differences, state_of

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def test_undo_out_of_order_is_refused_and_names_what_stands_in_the_way() -> None:
    model = Branches()
    start = state_of(model, process=False)
    first = surgery.replace_head(model, 7, example=EXAMPLE)
    middle = state_of(model, process=False)
    second = surgery.replace_head(model, 9, heads="fc", example=EXAMPLE)
    error = refused(first, r"replace_head\('fc': 9\) was done after it")
    assert "undo replace_head('fc': 9) first" in str(error)
    second.undo()
    assert not differences(middle, state_of(model, process=False))
    first.undo()
    assert not differences(start, state_of(model, process=False))


def test_three_operations_come_back_one_by_one() -> None:
    model = Branches()
    states, outcomes = [], []
    for operate in (
        lambda: surgery.replace_head(model, 7, example=EXAMPLE),
        lambda: surgery.freeze(model, except_="heads", example=EXAMPLE),
        lambda: surgery.remove_head(model, heads=["fc", "aux2"], example=EXAMPLE),
    ):
        states.append(state_of(model, process=False))
        try:
            outcomes.append(operate())
        except SurgeryError:
            states.pop()
    assert len(outcomes) >= 2
    for outcome in outcomes[:-1]:
        refused(outcome, "was done after it")
    for state, outcome in reversed(list(zip(states, outcomes, strict=True))):
        outcome.undo()
        assert not differences(state, state_of(model, process=False))


class Nested(nn.Module):
    """A model around another one that makes classes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Branches()
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.fc(self.backbone.trunk(x)))


def _swap(module: nn.Module, **new: nn.Module) -> Outcome:
    return surgery.replace(module, new, example=EXAMPLE)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            lambda m: surgery.replace_head(m, 6, heads="head", example=EXAMPLE),
            lambda m: surgery.replace_head(m.backbone, 5, example=EXAMPLE),
        ),
        (
            lambda m: surgery.replace_head(m.backbone, 5, example=EXAMPLE),
            lambda m: surgery.replace_head(m, 6, heads="head", example=EXAMPLE),
        ),
        (
            lambda m: _swap(m.backbone.trunk, **{"2": nn.GELU()}),
            lambda m: surgery.freeze(m, "head"),
        ),
    ],
    ids=["parent, then child", "child, then parent", "grandchild, then parent"],
)
def test_operations_through_parent_and_child_know_of_each_other(
    first: Callable[[Nested], Outcome], second: Callable[[Nested], Outcome]
) -> None:
    model = Nested()
    start = state_of(model, process=False)
    one, two = first(model), second(model)
    refused(one, "was done after it")
    two.undo()
    one.undo()
    assert not differences(start, state_of(model, process=False))


def test_operations_on_models_apart_do_not_know_of_each_other() -> None:
    model = Nested()
    one = _swap(model.backbone.trunk, **{"2": nn.GELU()})
    other, _ = branches()
    two = surgery.replace(model.head, {"": nn.Linear(5, 9)}, example=torch.ones(2, 5))
    one.undo()
    two.undo()
    assert other.num_classes == 7


def test_an_operation_whose_outcome_is_lost_still_stands_in_the_way() -> None:
    model, first = branches()
    surgery.replace_head(model, 9, example=EXAMPLE)
    error = refused(first, "was done after it")
    assert "its outcome is gone" in str(error)


def test_a_committed_operation_stands_for_good() -> None:
    model, first = branches()
    second = surgery.freeze(model, "fc")
    second.commit()
    assert "it was committed" in str(refused(first, r"freeze\('fc'\) was done after it"))


def test_nothing_is_remembered_of_operations_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "_standing", [])
    model = Branches()
    surgery.replace_head(model, 7, example=EXAMPLE)
    surgery.replace_head(model, 9, example=EXAMPLE).commit()
    assert not history.standing()
