"""Random numbers: drawn where a layer is made, and given back with it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

import surgery
from surgery.errors import SurgeryError
from surgery.operations.draws import Draws
from tests.operations.cases import Branches, branches
from tests.operations.state import differences, state_of, surroundings

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

EXAMPLE = torch.ones(3, 8)


def test_generators_go_back_where_nobody_drew_since() -> None:
    model = Branches()
    state = torch.get_rng_state()
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    assert not torch.equal(state, torch.get_rng_state())
    outcome.undo()
    assert torch.equal(state, torch.get_rng_state())


def test_generators_stay_where_somebody_drew_since() -> None:
    _, outcome = branches()
    torch.rand(3)
    state = torch.get_rng_state()
    outcome.undo()
    assert torch.equal(state, torch.get_rng_state())


def test_numbers_are_drawn_from_the_given_generator_alone_and_given_back() -> None:
    model, generator = Branches(), torch.Generator().manual_seed(3)
    state, own = torch.get_rng_state(), generator.get_state()
    outcome = surgery.replace_head(model, 7, example=EXAMPLE, generator=generator)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(own, generator.get_state())
    outcome.undo()
    assert torch.equal(own, generator.get_state())


def test_a_dry_run_draws_nothing_and_plans_the_same_values() -> None:
    model = Branches()
    state = torch.get_rng_state()
    plan = surgery.replace_head(model, 7, example=EXAMPLE, dry_run=True).plan
    assert torch.equal(state, torch.get_rng_state())
    surgery.replace_head(model, 7, example=EXAMPLE)
    planned = {step.address: step.new for step in plan.steps if step.kind == "parameter"}
    assert torch.equal(model.fc.weight, planned["fc.weight"])


def test_an_initialiser_that_draws_elsewhere_is_given_back_where_it_fails() -> None:
    def init(weight: Tensor) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)
        raise ValueError("no")

    model = Branches()
    before = state_of(model)
    with pytest.raises(SurgeryError, match="no"):
        surgery.replace_head(model, 7, example=EXAMPLE, init=init)
    assert not differences(before, state_of(model))


def test_every_generator_is_set_back_unless_somebody_drew_since() -> None:
    def draw(generator: torch.Generator) -> None:
        torch.rand(1)
        torch.rand(1, generator=generator)
        random.random()
        np.random.rand()

    own = torch.Generator().manual_seed(5)
    before, start = surroundings(), own.get_state()
    draws = Draws(own)
    draw(own)
    draws.take_back()
    assert (surroundings(), own.get_state().tolist()) == (before, start.tolist())
    draw(own)
    draws.settle()
    np.random.rand()
    left = np.random.get_state()[1].tolist()
    draws.give_back()
    assert own.get_state().tolist() == start.tolist()
    assert np.random.get_state()[1].tolist() == left
    after = surroundings()
    assert {name for name in before if before[name] != after[name]} == {"numpy"}
