"""Flags of parameters: set where asked, nothing else moved, and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from tests.operations.cases import Branches, Shared, build
from tests.operations.state import content, differences, state_of
from tests.strategies import module_trees

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def trainable(model: nn.Module) -> set[str]:
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}


@given(module_trees())
def test_everything_freezes_and_thaws(model: nn.Module) -> None:
    before = state_of(model)
    frozen = surgery.freeze(model)
    assert not trainable(model)
    thawed = surgery.unfreeze(model)
    assert trainable(model) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    thawed.undo()
    assert not trainable(model)
    frozen.undo()
    assert not differences(before, state_of(model))


@given(module_trees(), st.data())
def test_a_plan_counts_what_it_freezes_and_touches_nothing(
    model: nn.Module, data: st.DataObject
) -> None:
    before = state_of(model)
    outcome = surgery.freeze(model, norm="train", dry_run=True)
    assert not differences(before, state_of(model))
    planned = {address for step in outcome.plan.steps for address in step.addresses}
    assert planned == trainable(model)


def test_frozen_parameters_do_not_train_and_the_others_do() -> None:
    model = Branches()
    surgery.freeze(model, except_="fc", norm="train")
    assert trainable(model) == {"fc.weight", "fc.bias"}
    before = {name: content(parameter) for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(EXAMPLE)[0].square().sum().backward()
    model.fc.weight.grad.add_(1)
    model.fc.bias.grad.add_(1)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if content(p) != before[name]}
    assert moved == {"fc.weight", "fc.bias"}
    assert all(p.grad is None for name, p in model.named_parameters() if "fc" not in name)


def test_heads_are_found_for_who_asks() -> None:
    model = Branches()
    surgery.freeze(model, except_="heads", example=EXAMPLE)
    heads = {"fc", "aux2", "aux1.2"}
    assert {name.rpartition(".")[0] for name in trainable(model)} == heads
    surgery.unfreeze(model, "heads", example=EXAMPLE)
    assert {name.rpartition(".")[0] for name in trainable(model)} == heads


def test_a_shared_parameter_is_frozen_under_every_address() -> None:
    model = Shared()
    outcome = surgery.freeze(model, "again.weight")
    assert not model.head.weight.requires_grad
    assert outcome.plan.steps[0].addresses == ("head.weight", "again.weight", "more.0.weight")
    outcome.undo()
    assert model.head.weight.requires_grad


def test_one_address_that_is_left_out_leaves_out_the_parameter() -> None:
    model = Shared()
    surgery.freeze(model, except_="more")
    assert {"head.weight", "again.weight", "more.0.weight"} <= trainable(model)
    assert "trunk.weight" not in trainable(model)


@pytest.mark.parametrize("target", [torch.double, "meta"], ids=str)
def test_flags_come_back_on_a_model_that_moved(target: Any) -> None:
    model = build("branches")
    flags = trainable(model)
    outcome = surgery.freeze(model, except_="aux1")
    model.to(target)
    outcome.undo()
    assert trainable(model) == flags


def test_flags_come_back_on_parameters_that_were_loaded_by_assignment() -> None:
    model = Branches()
    outcome = surgery.freeze(model)
    model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)
    outcome.undo()
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_whole_numbers_stay_as_they_are() -> None:
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    surgery.unfreeze(model)
    assert trainable(model) == {"weight", "bias"}


@pytest.mark.parametrize("verb", [surgery.freeze, surgery.unfreeze])
def test_flags_of_what_was_made_in_inference_mode_are_refused(verb: Any) -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2).requires_grad_(verb is surgery.freeze)
    before = state_of(model)
    with pytest.raises(PlanError, match="inference mode"):
        verb(model)
    assert not differences(before, state_of(model))


def test_nothing_to_do_is_done_and_undone() -> None:
    model = nn.Sequential(nn.ReLU())
    outcome = surgery.freeze(model)
    assert not outcome.plan.steps
    assert outcome.undo() is model


@pytest.mark.parametrize("argument", ["patterns", "except_"])
@pytest.mark.parametrize("value", ["fx", ["fc", "nope.*"], [3]])
def test_a_pattern_that_fits_nothing_is_refused(argument: str, value: Any) -> None:
    model = Branches()
    before = state_of(model)
    with pytest.raises(ArgumentError):
        surgery.freeze(model, **{argument: value})
    assert not differences(before, state_of(model))


def is_bias(name: str) -> bool:
    return name.endswith("bias")


@pytest.mark.parametrize(
    ("verb", "asked", "title"),
    [
        ("freeze", {}, "freeze('*')"),
        ("freeze", {"except_": "2"}, "freeze('*', except_='2')"),
        (
            "freeze",
            {"except_": ["0", "2"], "norm": "train"},
            "freeze('*', except_=['0', '2'], norm='train')",
        ),
        ("freeze", {"patterns": ["0", is_bias]}, "freeze('0', is_bias)"),
        ("freeze", {"patterns": iter(["0", "2"])}, "freeze('0', '2')"),
        ("unfreeze", {"patterns": "2", "except_": "*.bias"}, "unfreeze('2', except_='*.bias')"),
        ("unfreeze", {}, "unfreeze('*')"),
    ],
    ids=["all", "except", "more", "callable", "iterator", "thaw", "thaw all"],
)
def test_the_title_says_what_was_asked_for(verb: str, asked: dict[str, Any], title: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    assert getattr(surgery, verb)(model, **asked).plan.title == title


def test_the_title_says_stages_as_they_were_asked_for() -> None:
    classes = ("torch.nn.modules.container.Sequential",)
    line = surgery.Family("line", classes, stem=("0",), stages=(("1",), ("2",)))
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    registry = Registry.of(line)
    frozen = surgery.freeze(model, "3.bias", stages=1, registry=registry)
    assert frozen.plan.title == "freeze('3.bias', stages=1)"
    thawed = surgery.unfreeze(model, stages=0, registry=registry)
    assert thawed.plan.title == "unfreeze(stages=0)"
