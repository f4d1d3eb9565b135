"""In which group a parameter goes, and under which name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.operations.plan import Outcome
from tests.optimizers.test_following import EXAMPLE, OPERATIONS, by_kind, trained
from tests.optimizers.training import NONE, batches, held, network, same, sound, train


def test_a_head_that_was_in_no_group_is_said_or_put_where_asked():
    for group in (None, 0):
        model = network()
        optimizer = torch.optim.SGD(model[:4].parameters(), lr=0.1)
        followed = surgery.follow(optimizer, OPERATIONS["other"](model), group=group)
        inside = any(model[4].weight is each for each in optimizer.param_groups[0]["params"])
        assert inside is (group == 0)
        said = any("4.weight, 4.bias" in note for note in followed.notes)
        assert said is (group is None)
        assert {moved.group for moved in followed.moved} == {group}


def test_what_is_unfrozen_goes_where_asked():
    model = network()
    surgery.freeze(model, except_="4", registry=NONE)
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, batches(1))
    before = held(optimizer)
    outcome = surgery.unfreeze(model, "3", registry=NONE)
    followed = surgery.follow(optimizer, outcome)
    assert [(moved.what, moved.reason) for moved in followed.moved] == 2 * [
        ("left out", "it was frozen")
    ]
    assert "3.weight, 3.bias" in followed.notes[0]
    assert same(held(optimizer), before)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    outcome = surgery.unfreeze(model, "3", registry=NONE)
    followed = surgery.follow(optimizer, outcome, group=0)
    assert {(moved.what, moved.group) for moved in followed.moved} == {("added", 0)}
    assert followed.notes == ()
    weight = model[3].weight.detach().clone()
    train(model, optimizer, batches(1))
    assert not torch.equal(model[3].weight, weight)
    # Also where the groups are others since.
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert optimizer.param_groups[0]["params"] == list(model[4].parameters())
    assert len(optimizer.state) == 2


def test_what_is_unfrozen_and_in_a_group_already_stays_there():
    model = network()
    surgery.freeze(model, except_="4", registry=NONE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    between = surgery.unfreeze(model, "3", registry=NONE)
    train(model, optimizer, batches(1))
    before = held(optimizer)
    assert surgery.follow(optimizer, between, group=0).moved == ()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    between.undo()
    surgery.follow(optimizer, between)
    assert same(held(optimizer)["states"], before["states"])
    assert len(optimizer.param_groups[0]["params"]) == 8
    # One made in between keeps them too.
    between = surgery.unfreeze(model, "3", registry=NONE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    between.undo()
    surgery.follow(optimizer, between)
    assert len(optimizer.param_groups[0]["params"]) == 8


def test_frozen_parameters_stay_and_their_gradients_are_said():
    model, optimizer = trained()
    train(model, optimizer, batches(1))
    states = dict(optimizer.state)
    followed = surgery.follow(optimizer, surgery.freeze(model, "0", registry=NONE))
    assert "0.weight, 0.bias" in followed.notes[-1]
    assert all(optimizer.state[each] is state for each, state in states.items())


def test_a_parameter_that_is_tied_is_in_one_group_once():
    model, optimizer = trained()
    train(model, optimizer, batches(1))
    outcome = surgery.replace(model, {"0": nn.Linear(8, 16)}, example=EXAMPLE, registry=NONE)
    surgery.follow(optimizer, outcome)
    tied = nn.Linear(16, 16)
    tied.weight = model[3].weight
    model.append(nn.Identity())
    state = optimizer.state[model[3].weight]
    outcome = surgery.replace(
        model, {"2": nn.Sequential(nn.ReLU(), tied)}, example=EXAMPLE, registry=NONE
    )
    surgery.follow(optimizer, outcome)
    sound(model, optimizer)
    assert optimizer.state[model[3].weight] is state
    # The tie ends, and the tensor stays in the other place.
    outcome = surgery.replace(model, {"2": nn.ReLU()}, example=EXAMPLE, registry=NONE)
    surgery.follow(optimizer, outcome)
    assert optimizer.state[model[3].weight] is state
    sound(model, optimizer)
    train(model, optimizer, batches(1))


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.module."])
def test_names_stay_spelled_as_they_were(before: str):
    model = network()
    named = [(before + name, each) for name, each in model.named_parameters()]
    optimizer = torch.optim.AdamW(named)
    first = OPERATIONS["more"](model)
    surgery.follow(optimizer, first)
    for operation in ("added", "wrapped", "deeper"):
        surgery.follow(optimizer, OPERATIONS[operation](model))
    places = {before + name: each for name, each in model.named_parameters()}
    group = optimizer.param_groups[0]
    assert dict(zip(group["param_names"], group["params"], strict=True)) == places


def attached(bare: nn.Module) -> Outcome:
    example = torch.zeros(2, 8)
    return surgery.replace_head(bare, 3, attach=True, example=example, registry=NONE)


def trunk() -> nn.Module:
    """Without a place of its own for a head, and ending in what is none."""
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))


def test_an_attached_head_goes_with_what_is_in_front_of_it_or_where_asked():
    for group, groups in ((None, {0, 1}), (2, {2})):
        model = trunk()
        optimizer = torch.optim.SGD([*by_kind(model), {"params": [], "param_names": []}], lr=0.1)
        followed = surgery.follow(optimizer, attached(model), group=group)
        assert {moved.group for moved in followed.moved} == groups


def test_names_change_with_the_root_and_back():
    model = trunk()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    before = list(optimizer.param_groups[0]["param_names"])
    outcome = attached(model)
    surgery.follow(optimizer, outcome)
    group = optimizer.param_groups[0]
    places = dict(outcome.model.named_parameters())
    assert {"backbone.0.weight", "head.weight"} < places.keys()
    assert dict(zip(group["param_names"], group["params"], strict=True)) == places
    optimizer.add_param_group({"params": [("own", nn.Parameter(torch.zeros(2)))]})
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert group["param_names"] == before


def test_an_average_cannot_become_another_model():
    model = trunk()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    outcome = attached(model)
    with pytest.raises(ArgumentError, match="another object") as error:
        surgery.follow(optimizer, outcome, averages=averaged)
    assert "AveragedModel(outcome.model)" in str(error.value.fix)
    surgery.follow(optimizer, outcome)
    sound(outcome.model, optimizer)


def test_a_name_of_one_s_own_goes_with_its_place():
    model = network()
    optimizer = torch.optim.SGD([*model[:4].named_parameters(), *model[4].named_parameters()], 0.1)
    names = list(optimizer.param_groups[0]["param_names"])
    assert names[-2:] == ["weight", "bias"]
    surgery.follow(optimizer, OPERATIONS["other"](model))
    assert optimizer.param_groups[0]["param_names"] == names
