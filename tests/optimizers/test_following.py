"""Following any operation: the groups hold what the model holds, and nothing happens by halves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import ArgumentError, SurgeryError, UndoError
from surgery.operations.plan import Outcome
from surgery.optimizers.checks import check_optimizer
from surgery.optimizers.places import Lists
from tests.optimizers.training import (
    NONE,
    OPTIMIZERS,
    Making,
    batches,
    held,
    network,
    same,
    sound,
    train,
)

EXAMPLE = torch.zeros(2, 8)
Operation = Callable[[nn.Module], Outcome]

OPERATIONS: dict[str, Operation] = {
    "more": lambda m: surgery.replace_head(
        m, 9, keep="all", heads="4", example=EXAMPLE, registry=NONE
    ),
    "other": lambda m: surgery.replace_head(m, 6, heads="4", example=EXAMPLE, registry=NONE),
    "deeper": lambda m: surgery.replace_head(
        m, 6, heads="4", hidden=(7,), example=EXAMPLE, registry=NONE
    ),
    "replace": lambda m: surgery.replace(
        m, {"0": nn.Linear(8, 16, bias=False)}, example=EXAMPLE, registry=NONE
    ),
    "added": lambda m: surgery.replace(m, {"2": nn.PReLU()}, example=EXAMPLE, registry=NONE),
    "wrapped": lambda m: surgery.replace(
        m, {"3": nn.Sequential(m[3], nn.LayerNorm(16))}, example=EXAMPLE, registry=NONE
    ),
    "load": lambda m: surgery.load_weights(m, network(seed=3), drop="4", registry=NONE),
    "assign": lambda m: surgery.load_weights(
        m, network(seed=3), drop="4", assign=True, registry=NONE
    ),
    "transplant": lambda m: surgery.transplant(network(seed=3), m, {"3": "3"}),
    "share": lambda m: surgery.transplant(network(seed=3), m, {"3": "3"}, how="share"),
    "move": lambda m: surgery.transplant(network(seed=3), m, {"3": "3"}, how="move"),
    "freeze": lambda m: surgery.freeze(m, "0", registry=NONE),
}
ROUNDS = {name: each for name, each in OPERATIONS.items() if name != "deeper"}


def by_kind(model: nn.Module) -> list[dict[str, Any]]:
    """A group of matrices and one of vectors, as weight decay has them."""
    named = list(model.named_parameters())
    return [
        {
            "params": [p for _, p in named if (p.dim() > 1) is matrices],
            "param_names": [name for name, p in named if (p.dim() > 1) is matrices],
            "weight_decay": 0.01 * matrices,
        }
        for matrices in (True, False)
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_group_holds_what_belongs_there(operation: str):
    model = network()
    optimizer = torch.optim.AdamW(by_kind(model))
    lists = [group["params"] for group in optimizer.param_groups]
    train(model, optimizer, batches(2))
    surgery.follow(optimizer, OPERATIONS[operation](model))
    sound(model, optimizer)
    matrices, vectors = lists
    assert [id(each) for group in lists for each in group] == [
        id(each) for group in optimizer.param_groups for each in group["params"]
    ]
    assert all(each.dim() > 1 for each in matrices)
    assert all(each.dim() <= 1 for each in vectors)
    assert len(matrices) + len(vectors) == len(list(model.parameters()))
    places = dict(model.named_parameters())
    for group in optimizer.param_groups:
        for name, each in zip(group["param_names"], group["params"], strict=True):
            if operation != "wrapped" or name in places:
                assert places[name] is each
    train(model, optimizer, batches(2))


@pytest.mark.filterwarnings("ignore::surgery.errors.PartialLoadWarning")
@given(
    making=st.sampled_from(OPTIMIZERS),
    names=st.lists(st.sampled_from(sorted(ROUNDS)), min_size=1, max_size=3),
    training=st.booleans(),
)
def test_whatever_was_done_is_followed_and_followed_back(
    making: Making, names: list[str], training: bool
):
    model = network()
    optimizer = making.make(model.parameters())
    train(model, optimizer, batches(1))
    seen, outcomes = [held(optimizer)], []
    for name in names:
        try:
            outcome = ROUNDS[name](model)
        except SurgeryError:
            # Not every operation fits behind every other.
            continue
        outcomes.append(outcome)
        surgery.follow(optimizer, outcome)
        sound(model, optimizer)
        if training:
            train(model, optimizer, batches(1))
        seen.append(held(optimizer))
    for outcome in reversed(outcomes):
        seen.pop()
        outcome.undo()
        surgery.follow(optimizer, outcome)
        sound(model, optimizer)
        now = held(optimizer)
        assert same(now["groups"], seen[-1]["groups"])
        if not training:
            assert same(now, seen[-1])
    optimizer.zero_grad()
    train(model, optimizer, batches(1))


def test_nothing_has_happened_where_something_fails(monkeypatch: pytest.MonkeyPatch):
    model = network()
    optimizer = torch.optim.AdamW(by_kind(model))
    train(model, optimizer, batches(2))
    average = copy.deepcopy(model)
    before, weights = held(optimizer), copy.deepcopy(average.state_dict())
    outcome = OPERATIONS["more"](model)
    put = Lists.put

    def failing(lists: Lists, target: torch.optim.Optimizer) -> None:
        put(lists, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lists, "put", failing)
    with pytest.raises(KeyboardInterrupt):
        surgery.follow(optimizer, outcome, averages=average)
    assert same(held(optimizer), before)
    assert same(dict(average.state_dict()), dict(weights))
    monkeypatch.undo()
    surgery.follow(optimizer, outcome, averages=average)
    sound(model, optimizer)


def test_an_average_of_another_model_changes_nothing():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = held(optimizer)
    outcome = OPERATIONS["more"](model)
    right, wrong = copy.deepcopy(network()), network(3)
    for averages in ([right, wrong], [right, nn.Linear(2, 2)], [right, model], object()):
        with pytest.raises(ArgumentError):
            surgery.follow(optimizer, outcome, averages=averages)
    assert right[4].weight.shape == (5, 16)
    assert same(held(optimizer), before)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_no_optimizer_and_no_outcome():
    model, optimizer = trained()
    outcome = OPERATIONS["more"](model)
    with pytest.raises(ArgumentError, match="no optimizer"):
        surgery.follow(model, outcome)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no outcome"):
        surgery.follow(optimizer, model)  # type: ignore[arg-type]
    for group in (1, -1, True, "0"):
        with pytest.raises(ArgumentError, match="no such group"):
            surgery.follow(optimizer, outcome, group=group)  # type: ignore[arg-type]


def test_the_optimizer_of_another_model():
    _, optimizer = trained()
    with pytest.raises(ArgumentError, match="holds no parameter of the model"):
        surgery.follow(optimizer, OPERATIONS["more"](network()))


def test_a_dry_run_a_copy_and_a_committed_outcome():
    model, optimizer = trained()
    dry = surgery.replace_head(model, 3, heads="4", example=EXAMPLE, dry_run=True, registry=NONE)
    with pytest.raises(ArgumentError, match="dry run"):
        surgery.follow(optimizer, dry)
    outcome = OPERATIONS["more"](model)
    for other in (copy.deepcopy(outcome), pickle.loads(pickle.dumps(outcome))):
        with pytest.raises(ArgumentError, match="copy") as error:
            surgery.follow(optimizer, other)
        assert "that the verb returned" in str(error.value.fix)
    outcome.commit()
    with pytest.raises(ArgumentError, match="committed"):
        surgery.follow(optimizer, outcome)


def test_following_twice():
    model, optimizer = trained()
    outcome = OPERATIONS["more"](model)
    surgery.follow(optimizer, outcome)
    before = held(optimizer)
    with pytest.raises(ArgumentError, match="already"):
        surgery.follow(optimizer, outcome)
    assert same(held(optimizer), before)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    again = surgery.follow(optimizer, outcome)
    assert again.moved == ()
    assert "nothing in the optimizer had to change" in again.notes


def test_following_out_of_order():
    model, optimizer = trained()
    first, second = OPERATIONS["more"](model), OPERATIONS["other"](model)
    with pytest.raises(ArgumentError, match="was not followed yet"):
        surgery.follow(optimizer, second)
    surgery.follow(optimizer, first)
    surgery.follow(optimizer, second)
    sound(model, optimizer)
    second.undo()
    first.undo()
    with pytest.raises(UndoError, match="has not heard of it"):
        surgery.follow(optimizer, first)
    surgery.follow(optimizer, second)
    surgery.follow(optimizer, first)
    sound(model, optimizer)


def test_a_parameter_in_two_groups():
    model, optimizer = trained()
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model[0].weight]})
    with pytest.raises(ArgumentError, match="twice"):
        surgery.follow(optimizer, OPERATIONS["more"](model))


def test_optimizers_with_a_state_for_several_parameters_or_processes():
    model = network()
    outcome = OPERATIONS["more"](model)
    sharded = type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})
    for optimizer in (torch.optim.LBFGS(model.parameters()), sharded(model.parameters(), lr=0.1)):
        with pytest.raises(ArgumentError) as error:
            surgery.follow(optimizer, outcome)
        assert error.value.fix
    flat = type("FlatParameter", (nn.Parameter,), {})(torch.zeros(3))
    with pytest.raises(ArgumentError, match="shards"):
        surgery.follow(torch.optim.SGD([flat], lr=0.1), outcome)


def test_what_accelerates_an_optimizer_is_passed_through():
    model, optimizer = trained()

    class Accelerated(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.optimizer = inner

    assert check_optimizer(Accelerated(optimizer)).optimizer is optimizer
    surgery.follow(Accelerated(optimizer), OPERATIONS["more"](model))
    sound(model, optimizer)


def test_of_two_operations_the_second_is_named_until_it_is_followed():
    model, optimizer = trained()
    first, second = OPERATIONS["more"](model), OPERATIONS["other"](model)
    (note,) = surgery.follow(optimizer, first).notes
    assert "replace_head('4': 6) was done since" in note
    assert surgery.follow(optimizer, second).notes == ()


def test_what_one_operation_did_to_two_models_is_one_operation():
    donor, model = network(seed=3), network()
    both = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (donor, model)]
    outcome = surgery.transplant(donor, model, {"3": "3"}, how="move")
    for each in both:
        assert not any("was done since" in note for note in surgery.follow(each, outcome).notes)


def test_a_model_that_was_built_has_nothing_to_follow():
    outcome = surgery.build(network, registry=NONE)
    optimizer = torch.optim.SGD(outcome.model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="built") as error:
        surgery.follow(optimizer, outcome)
    assert "parameter_groups(outcome.model)" in str(error.value.fix)


def test_what_an_operation_left_behind_that_nobody_followed_is_said():
    model, optimizer = trained()
    OPERATIONS["more"](model).commit()
    outside, strange = surgery.follow(optimizer, OPERATIONS["other"](model)).notes
    assert "4.weight, 4.bias" in outside
    assert strange.startswith("2 parameters of the optimizer are not in this model")
    assert "not followed" in strange


def test_a_donor_loses_what_moved_away():
    donor, model = network(seed=3), network()
    optimizer = torch.optim.SGD(donor.parameters(), lr=0.1, momentum=0.9)
    train(donor, optimizer, batches(1))
    before = held(optimizer)
    weight = donor[3].weight
    outcome = surgery.transplant(donor, model, {"3": "3"}, how="move")
    followed = surgery.follow(optimizer, outcome)
    assert {moved.what for moved in followed.moved} == {"removed"}
    assert all(weight is not each for each in optimizer.param_groups[0]["params"])
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert same(held(optimizer), before)


def test_a_state_dict_written_after_following_is_read_into_a_model_made_alike():
    model, optimizer = trained()
    train(model, optimizer, batches(2))
    surgery.follow(optimizer, OPERATIONS["more"](model))
    other = network(9)
    other.load_state_dict(model.state_dict())
    again = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (model, other):
        train(each, optimizer if each is model else again, batches(2, seed=4))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_several_optimizers_at_once_are_refused_with_the_remedy():
    model, optimizer = trained()
    with pytest.raises(ArgumentError, match="no optimizer") as error:
        surgery.follow([optimizer], OPERATIONS["more"](model))  # type: ignore[arg-type]
    assert "for each in optimizers" in str(error.value.fix)
