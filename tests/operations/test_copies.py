"""A copy of an outcome shows what the outcome shows, and only the outcome itself is undone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import UndoError
from surgery.operations.plan import Outcome
from tests.hostile import Headed, vectors
from tests.operations.state import differences, state_of

COPIES: dict[str, Callable[[Outcome], Outcome]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda outcome: pickle.loads(pickle.dumps(outcome)),
}
VERBS: dict[str, Callable[[nn.Module], Outcome]] = {
    "replace_head": lambda model: surgery.replace_head(model, 3, heads="fc", example=vectors()()),
    "remove_head": lambda model: surgery.remove_head(model, heads="fc", example=vectors()()),
    "freeze": lambda model: surgery.freeze(model),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_shows_the_operation_and_leaves_undoing_to_the_original(how: str, verb: str) -> None:
    model = Headed()
    model.num_classes = 5
    before = state_of(model)
    outcome = VERBS[verb](model)
    after = state_of(model)
    copied = COPIES[how](outcome)
    assert copied.model is not model
    assert copied.plan.title == outcome.plan.title
    assert [str(step) for step in copied.plan.steps] == [str(s) for s in outcome.plan.steps]
    assert copied.checks == outcome.checks
    assert {k: v.tolist() for k, v in copied.old.items()} == {
        k: v.tolist() for k, v in outcome.old.items()
    }
    assert copied.new.keys() == outcome.new.keys()
    with pytest.raises(UndoError, match="a copy cannot be undone") as raised:
        copied.undo()
    assert raised.value.fix == "call undo() on the outcome that the verb returned"
    copied.commit()
    assert copied.old.keys() == outcome.old.keys()
    assert not differences(after, state_of(model))
    outcome.undo()
    assert not differences(before, state_of(model))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_after_undo_says_that_it_was_undone(how: str) -> None:
    outcome = VERBS["replace_head"](Headed())
    outcome.undo()
    with pytest.raises(UndoError, match="undone already"):
        COPIES[how](outcome).undo()


@pytest.mark.parametrize("how", COPIES)
def test_the_model_of_a_copy_takes_operations_of_its_own(how: str) -> None:
    copied = COPIES[how](VERBS["replace_head"](Headed()))
    surgery.replace_head(copied.model, 9, heads="fc", example=vectors()()).undo()
    assert copied.model(vectors()()).shape == (2, 3)
    assert torch.equal(copied.model.fc.weight, copied.new["fc.weight"])


def test_a_copy_of_a_dry_run_is_a_dry_run() -> None:
    outcome = surgery.replace_head(Headed(), 3, heads="fc", example=vectors()(), dry_run=True)
    with pytest.raises(UndoError, match="dry run"):
        copy.deepcopy(outcome).undo()


def test_the_original_stays_undoable_while_a_copy_of_its_model_changes() -> None:
    model = Headed()
    outcome = VERBS["replace_head"](model)
    copied = copy.deepcopy(outcome)
    surgery.replace_head(copied.model, 9, heads="fc", example=vectors()())
    outcome.undo()
    assert model(vectors()()).shape == (2, 5)
