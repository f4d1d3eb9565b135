"""Following under inference mode, on another default device, with what was made when."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import surgery
from surgery.errors import ArgumentError
from surgery.optimizers import following, memory
from surgery.optimizers.places import Lists
from tests.optimizers.test_following import OPERATIONS, by_kind, trained
from tests.optimizers.training import OPTIMIZERS, Ahead, batches, held, network, same, sound, train


def test_an_optimizer_made_between_follows_back():
    model = network()
    outcome = OPERATIONS["more"](model)
    optimizer = torch.optim.AdamW(by_kind(model))
    train(model, optimizer, batches(1))
    outcome.undo()
    surgery.follow(optimizer, outcome)
    sound(model, optimizer)
    assert len(Lists.of(optimizer).where()) == len(list(model.parameters()))
    train(model, optimizer, batches(1))


def test_no_hook_runs_and_no_random_number_is_drawn():
    model, optimizer = trained()
    train(model, optimizer, batches(1))
    steps: list[object] = []
    optimizer.register_step_pre_hook(lambda *given: steps.append(given))
    optimizer.register_step_post_hook(lambda *given: steps.append(given))
    outcome = OPERATIONS["more"](model)
    state = torch.get_rng_state()
    surgery.follow(optimizer, outcome)
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == []


@pytest.mark.parametrize("inside", ["both", "follow"])
def test_training_goes_on_after_inference(inside: str):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    train(model, optimizer, batches(1))
    with torch.inference_mode(inside == "both"):
        outcome = OPERATIONS["more"](model)
    with torch.inference_mode():
        surgery.follow(optimizer, outcome, averages=averaged)
    for batch in batches(2):
        train(model, optimizer, [batch])
        averaged.update_parameters(model)
    with torch.inference_mode():
        outcome.undo()
        surgery.follow(optimizer, outcome)
    train(model, optimizer, batches(1))
    averaged.update_parameters(model)


@pytest.mark.parametrize("number", range(len(OPTIMIZERS)))
def test_the_default_device_is_not_that_of_the_parameters(number: int):
    model = network()
    optimizer = OPTIMIZERS[number].make(model.parameters())
    train(model, optimizer, batches(2))
    outcome = OPERATIONS["more"](model)
    plain = surgery.follow(optimizer, outcome)
    state = held(optimizer)["states"]
    outcome.undo()
    surgery.follow(optimizer, outcome)
    outcome = OPERATIONS["more"](model)
    with torch.device("meta"):
        assert surgery.follow(optimizer, outcome).moved == plain.moved
    again = held(optimizer)["states"]
    assert [*again.values()] == [] or same([*again.values()][-1], [*state.values()][-1])


@pytest.mark.parametrize("cls", [Ahead, torch.optim.Adagrad])
@pytest.mark.parametrize("operation", ["other", "deeper", "added", "load", "share"])
def test_what_the_constructor_makes_is_made_for_what_comes_later(operation: str, cls: Any):
    """The next step relies on it."""
    model = network()
    optimizer = cls(model.parameters())
    train(model, optimizer, batches(1))
    outcome = OPERATIONS[operation](model)
    surgery.follow(optimizer, outcome)
    sound(model, optimizer)
    train(model, optimizer, batches(2))
    counts = {float(optimizer.state[each]["step"]) for each in model.parameters()}
    assert counts == {2, 3}
    # One that was made in between has never seen what comes back.
    between = cls(model.parameters())
    outcome.undo()
    for each in (optimizer, between):
        surgery.follow(each, outcome)
        sound(model, each)
        train(model, each, batches(1))


def test_whether_a_step_makes_the_state_is_asked_once_for_each_sort(
    monkeypatch: pytest.MonkeyPatch,
):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, batches(1))
    asked: list[int] = []
    real = following.made_ahead
    monkeypatch.setattr(following, "made_ahead", lambda *given: asked.append(1) or real(*given))
    moved = surgery.follow(optimizer, OPERATIONS["load"](model)).moved
    assert (len(moved), len(asked)) == (6, 2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_following_what_was_undone_unheard_changes_nothing(operation: str):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, batches(2))
    before = held(optimizer)
    outcome = OPERATIONS[operation](model)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert same(held(optimizer), before)


def test_a_model_that_was_converted_before_it_was_followed():
    model, optimizer = trained()
    train(model, optimizer, batches(1))
    outcome = OPERATIONS["more"](model)
    model.double()
    surgery.follow(optimizer, outcome)
    assert model[4].weight.grad.dtype == torch.float64
    sound(model, optimizer)


def test_what_is_remembered_goes_when_the_outcome_is_committed():
    model, optimizer = trained()
    train(model, optimizer, batches(1))
    old = weakref.ref(model[4].weight)
    state = weakref.ref(optimizer.state[model[4].weight]["momentum_buffer"])
    outcome = OPERATIONS["more"](model)
    surgery.follow(optimizer, outcome)
    assert None not in (old(), state())
    outcome.commit()
    gc.collect()
    assert old() is state() is None
    with pytest.raises(ArgumentError, match="committed"):
        surgery.follow(optimizer, outcome)
    surgery.follow(optimizer, OPERATIONS["other"](model))
    sound(model, optimizer)


def test_what_is_remembered_goes_with_the_outcome():
    model, optimizer = trained()
    train(model, optimizer, batches(1))
    outcome = OPERATIONS["more"](model)
    surgery.follow(optimizer, outcome)
    assert len(list(memory.memories_of(optimizer))) == 1
    del outcome
    gc.collect()
    assert list(memory.memories_of(optimizer)) == []
