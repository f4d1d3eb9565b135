"""What new entries start from: what the optimizer itself would begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import Optimizer

import surgery
from surgery.optimizers.zero import goes_by_others, is_kept_alike, zero_of
from tests.optimizers.training import NONE, OPTIMIZERS, Making, batches, network, train

library = pytest.importorskip("timm.optim")
LIBRARY = [
    "adabelief",
    "adan",
    "adopt",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "madgrad",
    "mars",
    "novograd",
    "rmsproptf",
]


def of_library(name: str) -> Making:
    return Making(
        name, lambda ps: library.create_optimizer_v2(list(ps), opt=name, lr=0.01, momentum=0.9)
    )


EVERY = [*OPTIMIZERS, *map(of_library, LIBRARY)]
EXAMPLE = torch.zeros(2, 8)


@pytest.mark.parametrize("making", EVERY, ids=lambda making: making.name)
def test_a_class_that_nobody_asked_about_stays_where_it_began(making: Making) -> None:
    """The loss ignores the new classes: their gradient is zero from the first step on."""
    model = network()
    optimizer = making.make(model.parameters())
    train(model, optimizer, batches(4))
    surgery.follow(
        optimizer,
        surgery.replace_head(model, 8, keep="all", heads="4", example=EXAMPLE, registry=NONE),
    )
    for group in optimizer.param_groups:
        # Decay moves what nobody asked about.
        group.update({name: 0.0 for name in ("weight_decay", "lambd") if name in group})
    began = model[4].weight[5:].detach().clone()
    train(model, optimizer, batches(8))
    torch.testing.assert_close(model[4].weight[5:].detach(), began, rtol=1e-5, atol=1e-6)


def adam_like(ps: Iterable[Any]) -> Optimizer:
    return optim.Adam(ps, lr=0.1, weight_decay=0.1)


STARTS: dict[str, tuple[Callable[[Iterable[Any]], Optimizer], dict[str, complex], set[str]]] = {
    "adam": (adam_like, {"exp_avg": 0.0, "exp_avg_sq": 0.0}, set()),
    "adagrad": (
        lambda ps: optim.Adagrad(ps, initial_accumulator_value=0.25),
        {"sum": 0.25},
        set(),
    ),
    "rprop": (lambda ps: optim.Rprop(ps, lr=0.125), {"prev": 0.0, "step_size": 0.125}, set()),
    "asgd": (lambda ps: optim.ASGD(ps, lambd=0.1), {}, {"ax"}),
    "sparse": (lambda ps: optim.SparseAdam(ps), {"exp_avg": 0.0, "exp_avg_sq": 0.0}, set()),
    "decaying": (lambda ps: library.RMSpropTF(ps, momentum=0), {"square_avg": 1.0}, set()),
    "origin": (
        lambda ps: library.MADGRAD(ps, momentum=0.9, weight_decay=0.1),
        {"grad_sum_sq": 0.0, "s": 0.0},
        {"x0"},
    ),
    "momentum": (lambda ps: optim.SGD(ps, momentum=0.9), {"momentum_buffer": 0.0}, set()),
    "nothing": (lambda ps: optim.SGD(ps), {}, set()),
}


@pytest.mark.parametrize("name", STARTS)
def test_the_start_is_read_off_the_optimizer(name: str) -> None:
    make, starts, values = STARTS[name]
    optimizer = make([nn.Parameter(torch.ones(4, 3))])
    zero = zero_of(optimizer, optimizer.param_groups[0], optimizer.param_groups[0]["params"][0])
    assert zero.found
    assert dict(zero.starts) == starts
    assert zero.values == values


@pytest.mark.parametrize("make", [optim.Adam, optim.Adagrad])
def test_a_complex_parameter_has_a_start_too(make: Callable[..., Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))
    zero = zero_of(made := make([weight]), made.param_groups[0], weight)
    assert zero.found
    assert set(zero.starts.values()) == {0j}


class Late(Optimizer):
    """Makes a state of its own at its second step, from the values; as a slow copy is made."""

    def __init__(self, params: Iterable[Any]) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for each in group["params"]:
                state = self.state[each]
                state["step"] = state.get("step", 0) + 1
                if state["step"] > 1:
                    slow = state.setdefault("slow", each.clone())
                    each.copy_(slow.add_(each - slow, alpha=0.5))
                each -= group["lr"] * each.grad


class Closed(Late):
    """Steps with a closure alone, so that no stand-in can be stepped."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is None:
            raise TypeError("closure")
        super().step()


def test_where_nothing_says_how_new_entries_start_the_tensor_starts_anew() -> None:
    model = network()
    optimizer = Late(model.parameters())
    train(model, optimizer, batches(3))
    slow = optimizer.state[model[4].weight]["slow"].clone()
    grown = surgery.replace_head(model, 7, keep="all", heads="4", example=EXAMPLE, registry=NONE)
    moved = surgery.follow(optimizer, grown).moved[0]
    assert moved.state == "starts anew"
    assert "'slow'" in moved.reason
    grown.undo()
    surgery.follow(optimizer, grown)
    # Of fewer classes all entries had a state.
    fewer = surgery.replace_head(
        model, 3, keep={0: 2, 1: 1, 2: 0}, heads="4", example=EXAMPLE, registry=NONE
    )
    assert surgery.follow(optimizer, fewer).moved[0].state == "carried"
    assert torch.equal(optimizer.state[model[4].weight]["slow"], slow[[2, 1, 0]])


def test_an_optimizer_that_cannot_be_tried_gets_zeros_and_says_so() -> None:
    model = network()
    optimizer = Closed(model.parameters())
    for images, _ in batches(3):
        model(images).sum().backward()
        optimizer.step(lambda: None)
    grown = surgery.replace_head(model, 7, keep="all", heads="4", example=EXAMPLE, registry=NONE)
    moved = surgery.follow(optimizer, grown).moved[0]
    assert moved.state == "carried"
    assert "'slow' start from 0" in moved.reason
    assert not optimizer.state[model[4].weight]["slow"][5:].any()


def test_values_that_were_mixed_have_no_origin() -> None:
    """A mean of classes began at no class's origin."""
    model = network()
    optimizer = library.MADGRAD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, batches(3))
    mixed = surgery.replace_head(
        model, 2, keep={0: [0, 1], 1: 2}, heads="4", example=EXAMPLE, registry=NONE
    )
    before = model[4].weight.detach().clone()
    moved = surgery.follow(optimizer, mixed).moved[0]
    assert moved.state == "starts anew"
    assert "'x0'" in moved.reason
    images, _ = batches(1)[0]
    optimizer.zero_grad()
    (model(images) * 0).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model[4].weight.detach(), before)


def test_an_average_begins_with_what_a_new_class_is() -> None:
    model = network()
    optimizer = optim.ASGD(model.parameters(), lr=0.05, t0=1)
    train(model, optimizer, batches(4))
    ax = optimizer.state[model[4].weight]["ax"].clone()
    grown = surgery.replace_head(model, 7, keep="all", heads="4", example=EXAMPLE, registry=NONE)
    surgery.follow(optimizer, grown)
    now = optimizer.state[model[4].weight]["ax"]
    assert torch.equal(now, torch.cat([ax, model[4].weight[5:].detach()]))


# What steps an entry by a norm of the tensor, or clips it by one.
COUPLED = {"adafactor", "lamb", "lars", "mars", "novograd", "shampoo"}
PLAIN = [making for making in EVERY if making.name not in COUPLED]


@pytest.mark.parametrize("making", PLAIN, ids=lambda making: making.name)
@pytest.mark.parametrize("axis", [0, 1])
def test_elementwise_steps_do_not_go_by_others(making: Making, axis: int) -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = making.make([weight])
    assert not goes_by_others(optimizer, optimizer.param_groups[0], weight, axis)


@pytest.mark.parametrize(
    "name", ["adafactor", "lamb", "lars", "novograd", "torch-adafactor"], ids=str
)
def test_steps_by_norms_of_the_whole_tensor_are_told(name: str) -> None:
    def make(ps: Iterable[Any]) -> Optimizer:
        if name == "torch-adafactor":
            return optim.Adafactor(ps, lr=0.01)
        return library.create_optimizer_v2(list(ps), opt=name, lr=0.01, weight_decay=0.1)

    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, batches(2))
    # A rate that a schedule begins with zero hides nothing.
    optimizer.param_groups[-1]["lr"] = 0.0
    outcome = surgery.replace_head(model, 8, keep="all", heads="4", example=EXAMPLE, registry=NONE)
    followed = surgery.follow(optimizer, outcome)
    bias = next(moved for moved in followed.moved if moved.address == "4.bias")
    assert (bias.state, "whole tensor" in bias.reason) == ("carried", True)


@pytest.mark.parametrize(("before", "after"), [(12, 40), (40, 12)], ids=["larger", "smaller"])
def test_state_of_another_form_at_another_size_starts_anew(before: int, after: int) -> None:
    """From a size on, this one keeps sums of rows and columns, and has no other state then."""
    model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, before))
    optimizer = library.create_optimizer_v2(list(model.parameters()), opt="adafactor", lr=0.01)

    def step() -> None:
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()

    step()
    keep = {row: row for row in range(min(before, after))}
    outcome = surgery.replace_head(
        model, after, keep=keep, heads="1", example=EXAMPLE, registry=NONE
    )
    group = optimizer.param_groups[0]
    old, new = outcome.old["1.weight"], outcome.new["1.weight"]
    assert not is_kept_alike(optimizer, group, old, new)
    assert is_kept_alike(optimizer, group, old, old)
    followed = surgery.follow(optimizer, outcome)
    weight = next(moved for moved in followed.moved if moved.address == "1.weight")
    assert (weight.state, "its new size" in weight.reason) == ("starts anew", True)
    step()
