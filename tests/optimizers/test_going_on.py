"""Training goes on: k steps, more classes, k steps, as if nobody had stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import surgery
from surgery.operations.plan import Outcome
from tests.optimizers.training import (
    NONE,
    OPTIMIZERS,
    Making,
    batches,
    held,
    needs_muon,
    network,
    same,
    sound,
    train,
)

ELEMENTWISE = [making for making in OPTIMIZERS if making.elementwise]


def more_classes(model: nn.Module, classes: int = 7) -> Outcome:
    return surgery.replace_head(
        model, classes, keep="all", heads="4", example=torch.zeros(2, 8), registry=NONE
    )


@pytest.mark.parametrize("making", ELEMENTWISE, ids=lambda making: making.name)
def test_going_on_with_more_classes_equals_never_having_stopped(making: Making):
    """The loss ignores the new classes, so the old ones learn what they would have learned."""
    # Double precision: a product with more rows rounds differently.
    whole = network().double()
    data = [(images.double(), labels) for images, labels in batches(8)]
    stopped = copy.deepcopy(whole)
    optimizer = making.make(whole.parameters())
    train(whole, optimizer, data)
    other = making.make(stopped.parameters())
    train(stopped, other, data[:4])
    surgery.follow(other, more_classes(stopped))
    sound(stopped, other)
    train(stopped, other, data[4:])
    for (name, one), two in zip(whole.named_parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(two[: len(one)], one, rtol=1e-9, atol=1e-10, msg=name)
    for one, two in zip(whole.parameters(), stopped.parameters(), strict=True):
        for key, value in optimizer.state.get(one, {}).items():
            if isinstance(value, torch.Tensor) and value.dim():
                kept = other.state[two][key][: len(value)]
                torch.testing.assert_close(kept, value, rtol=1e-8, atol=1e-10, msg=key)
            else:
                assert same(other.state[two][key], value), key


@pytest.mark.parametrize("making", ELEMENTWISE, ids=lambda making: making.name)
def test_without_following_it_would_not_go_on(making: Making):
    """A control: the same without follow leaves the new head where it was."""
    model = network()
    optimizer = making.make(model.parameters())
    train(model, optimizer, batches(2))
    more_classes(model)
    before = model[4].weight.detach().clone()
    train(model, optimizer, batches(2))
    assert torch.equal(model[4].weight, before)


@pytest.mark.parametrize("making", OPTIMIZERS, ids=lambda making: making.name)
def test_undoing_and_following_back_restores_every_bit(making: Making):
    model = network()
    optimizer = making.make(model.parameters())
    train(model, optimizer, batches(3))
    before = held(optimizer)
    states = {id(tensor): state for tensor, state in optimizer.state.items()}
    outcome = more_classes(model)
    surgery.follow(optimizer, outcome)
    outcome.undo()
    followed = surgery.follow(optimizer, outcome)
    assert followed.undone
    assert same(held(optimizer), before)
    assert all(state is states[id(tensor)] for tensor, state in optimizer.state.items())


@pytest.mark.parametrize("making", OPTIMIZERS, ids=lambda making: making.name)
def test_what_was_replaced_comes_back_also_after_training(making: Making):
    model = network()
    optimizer = making.make(model.parameters())
    train(model, optimizer, batches(3))
    head = [id(model[4].weight), id(model[4].bias)]
    before = held(optimizer)
    outcome = more_classes(model)
    surgery.follow(optimizer, outcome)
    train(model, optimizer, batches(3, seed=2))
    trained = held(optimizer)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    after = held(optimizer)
    assert same(after["groups"], before["groups"])
    for key, state in after["states"].items():
        expected = before if key in head else trained
        assert same(state, expected["states"][key])
    train(model, optimizer, batches(1))


@pytest.mark.parametrize("making", ELEMENTWISE, ids=lambda making: making.name)
def test_gradients_that_are_being_accumulated_go_along(making: Making):
    whole = network().double()
    stopped = copy.deepcopy(whole)
    data = [(images.double(), labels) for images, labels in batches(6)]
    for model in (whole, stopped):
        optimizer = making.make(model.parameters())
        for number, (images, labels) in enumerate(data):
            if model is stopped and number == 3:
                surgery.follow(optimizer, more_classes(model))
            nn.functional.cross_entropy(model(images)[:, :5], labels).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    for one, two in zip(whole.parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(two[: len(one)], one, rtol=1e-9, atol=1e-10)


def test_gradients_of_what_is_mixed_or_frozen_or_new_do_not_go_along():
    for keep, frozen in (({0: [1, 2]}, False), ({0: 1}, True), (None, False)):
        model, data = network(), batches(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(data[0][0]), data[0][1]).backward()
        model[4].requires_grad_(not frozen)
        outcome = surgery.replace_head(
            model, 3, keep=keep, heads="4", example=torch.zeros(2, 8), registry=NONE
        )
        model[4].requires_grad_(not frozen)
        surgery.follow(optimizer, outcome)
        assert model[4].weight.grad is None


def test_a_gradient_of_one_s_own_stays_and_undoing_finds_the_old_one():
    model, ((images, _),) = network(), batches(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images).sum().backward()
    old = model[4].weight.grad
    outcome = more_classes(model)
    model[4].weight.grad = mine = torch.ones_like(model[4].weight)
    surgery.follow(optimizer, outcome)
    assert model[4].weight.grad is mine
    assert model[4].bias.grad.tolist() == [6, 6, 6, 6, 6, 0, 0]
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert model[4].weight.grad is old


def test_states_of_untouched_parameters_are_the_same_objects():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, batches(2))
    kept = {p: (optimizer.state[p], dict(optimizer.state[p])) for p in model[:4].parameters()}
    followed = surgery.follow(optimizer, more_classes(model))
    assert followed.untouched == len(kept)
    for parameter, (state, entries) in kept.items():
        assert optimizer.state[parameter] is state
        assert all(state[key] is value for key, value in entries.items())


def test_rows_go_where_keep_says_and_several_become_their_mean():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, batches(3))
    old = {key: value.clone() for key, value in optimizer.state[model[4].weight].items()}
    outcome = surgery.replace_head(
        model, 4, keep={0: 4, 2: [1, 3]}, heads="4", example=torch.zeros(2, 8), registry=NONE
    )
    followed = surgery.follow(optimizer, outcome)
    new = optimizer.state[model[4].weight]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(new[key][0], old[key][4])
        assert torch.equal(new[key][2], old[key][[1, 3]].mean(0))
        assert not new[key][[1, 3]].any()
    assert new["step"] == old["step"] == 3
    weight = next(moved for moved in followed.moved if moved.address == "4.weight")
    assert (weight.state, weight.entries, weight.step) == ("carried", (2, 4), 3)


def test_new_entries_start_from_what_the_optimizer_starts_from():
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters(), initial_accumulator_value=0.25)
    train(model, optimizer, batches(1))
    surgery.follow(optimizer, more_classes(model))
    state = optimizer.state[model[4].weight]["sum"]
    assert (state[5:] == 0.25).all()
    assert (state[:5] >= 0.25).all()


def test_channels_of_an_adapted_input_carry_their_state():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    old = optimizer.state[model[0].weight]["exp_avg"].clone()
    outcome = surgery.adapt_input(model, in_channels=5, registry=NONE)
    followed = surgery.follow(optimizer, outcome)
    new = optimizer.state[model[0].weight]["exp_avg"]
    assert torch.equal(new, old[:, [0, 1, 2, 0, 1]])
    assert new.stride() == torch.zeros_like(model[0].weight).stride()
    assert followed.moved[0].entries == (5, 5)
    grey = surgery.adapt_input(model, in_channels=1, registry=NONE)
    surgery.follow(optimizer, grey)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], new.mean(1, keepdim=True))
    for outcome_ in (grey, outcome):
        outcome_.undo()
        surgery.follow(optimizer, outcome_)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], old)


@pytest.mark.parametrize("name", ["adafactor", "shampoo"])
def test_state_that_spans_rows_starts_anew_and_says_so(name: str):
    making = next(each for each in OPTIMIZERS if each.name == name)
    # Square: the shape of a preconditioner is that of the parameter.
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 5))
    optimizer = making.make(model.parameters())
    train(model, optimizer, batches(2))
    outcome = surgery.replace_head(
        model, 7, keep="all", heads="1", example=torch.zeros(2, 8), registry=NONE
    )
    followed = surgery.follow(optimizer, outcome)
    weight = next(moved for moved in followed.moved if moved.address == "1.weight")
    assert weight.state == "starts anew"
    assert weight.reason
    assert model[1].weight not in optimizer.state
    assert model[0].weight in optimizer.state
    train(model, optimizer, batches(2))


@needs_muon
def test_muon_takes_a_matrix_as_a_whole():
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 5, bias=False))
    optimizer = torch.optim.Muon(model.parameters())
    train(model, optimizer, batches(2))
    outcome = surgery.replace_head(
        model, 7, keep="all", heads="1", example=torch.zeros(2, 8), registry=NONE
    )
    followed = surgery.follow(optimizer, outcome)
    assert [(moved.state, "whole" in moved.reason) for moved in followed.moved] == [
        ("starts anew", True)
    ]
    train(model, optimizer, batches(2))


def schedulers() -> list[str]:
    return ["StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau", "LambdaLR"]


@pytest.mark.parametrize("name", schedulers())
def test_learning_rate_schedulers_go_on(name: str):
    arguments = {
        "StepLR": {"step_size": 2},
        "CosineAnnealingLR": {"T_max": 9},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 9},
        "ReduceLROnPlateau": {"patience": 1},
        "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    }[name]
    rates: list[list[float]] = []
    for operated in (False, True):
        model = network()
        groups = [{"params": model[:4].parameters(), "lr": 0.01}, {"params": model[4].parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
        seen = []
        for epoch, batch in enumerate(batches(8)):
            if operated and epoch == 4:
                surgery.follow(optimizer, more_classes(model))
            train(model, optimizer, [batch])
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen += [group["lr"] for group in optimizer.param_groups]
        rates.append(seen)
    assert rates[0] == rates[1]


def test_a_gradient_scaler_goes_on():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for epoch, (images, labels) in enumerate(batches(4)):
        if epoch == 2:
            surgery.follow(optimizer, more_classes(model))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        before = model[4].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert not torch.equal(model[4].weight, before)


def test_a_gradient_scaler_skips_what_overflows_in_a_new_head_as_before():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def step(factor: float) -> None:
        (images, labels), *_ = batches(1)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels) * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    surgery.follow(optimizer, more_classes(model))
    step(1.0)
    assert scaler.get_scale() == 8.0
    before = held(optimizer), [each.detach().clone() for each in model.parameters()]
    step(float("inf"))
    assert scaler.get_scale() == 4.0
    assert same(held(optimizer), before[0])
    assert all(map(torch.equal, before[1], model.parameters()))
    step(1.0)
    assert not torch.equal(before[1][-1], model[4].bias)


def test_a_step_count_that_a_device_captures_stays_a_tensor_there():
    """Such an Adam only steps on an accelerator; its state has the same form everywhere."""
    model = network()
    plain = torch.optim.Adam(model.parameters())
    train(model, plain, batches(3))
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)
    optimizer.load_state_dict(plain.state_dict())
    for group in optimizer.param_groups:
        group["capturable"] = True
    counts = {id(each): optimizer.state[each]["step"] for each in model[:4].parameters()}
    moments = optimizer.state[model[4].weight]["exp_avg"].clone()
    followed = surgery.follow(optimizer, more_classes(model))
    assert {moved.step for moved in followed.moved} == {3}
    for each in model.parameters():
        count = optimizer.state[each]["step"]
        assert isinstance(count, torch.Tensor)
        assert (count.dtype, count.shape, count.device) == (torch.float32, (), each.device)
        assert counts.get(id(each), count) is count
    assert torch.equal(optimizer.state[model[4].weight]["exp_avg"][:5], moments)
    assert optimizer.param_groups[0]["capturable"]


@pytest.mark.parametrize("operation", ["keep", "adapt", "hidden", "load", "freeze", "wrap"])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_goes_on(operation: str, use_buffers: bool):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    function = get_ema_multi_avg_fn(0.5)
    averaged = AveragedModel(model, multi_avg_fn=function, use_buffers=use_buffers)
    example = torch.zeros(2, 8)
    for batch in batches(3):
        train(model, optimizer, [batch])
        averaged.update_parameters(model)
    old = {key: value.clone() for key, value in averaged.module.state_dict().items()}
    if operation == "keep":
        outcome = more_classes(model)
    elif operation == "adapt":
        outcome = surgery.replace(model, {"0": nn.Linear(8, 16)}, example=example, registry=NONE)
    elif operation == "hidden":
        outcome = surgery.replace_head(
            model, 6, heads="4", hidden=(3,), example=example, registry=NONE
        )
    elif operation == "load":
        outcome = surgery.load_weights(model, network(seed=5), registry=NONE)
    elif operation == "freeze":
        outcome = surgery.freeze(model, "0", registry=NONE)
    else:
        wrapped = nn.Sequential(model[4], nn.Identity())
        outcome = surgery.replace(model, {"4": wrapped}, example=example, registry=NONE)
    surgery.follow(optimizer, outcome, averages=averaged)
    now = averaged.module.state_dict()
    assert now.keys() == model.state_dict().keys()
    if operation == "keep":
        assert torch.equal(now["4.weight"][:5], old["4.weight"])
        assert torch.equal(now["4.weight"][5:], model[4].weight[5:])
    if operation == "wrap":
        assert torch.equal(now["4.0.weight"], old["4.weight"])
    if operation == "load":
        assert all(torch.equal(now[key], each) for key, each in model.state_dict().items())
    assert not set(map(id, model.parameters())) & set(map(id, averaged.parameters()))
    train(model, optimizer, batches(1))
    averaged.update_parameters(model)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert averaged.module.state_dict().keys() == old.keys()
    averaged.update_parameters(model)


def test_averages_of_adapted_inputs_are_the_adapted_average():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    averaged = AveragedModel(model)
    with torch.no_grad():
        averaged.module[0].weight.mul_(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = copy.deepcopy(averaged.module)
    surgery.adapt_input(expected, in_channels=1, registry=NONE)
    outcome = surgery.adapt_input(model, in_channels=1, registry=NONE)
    surgery.follow(optimizer, outcome, averages=[averaged])
    torch.testing.assert_close(averaged.module[0].weight, expected[0].weight)


@pytest.mark.parametrize("operation", ["keep", "hidden", "replace", "wrap"])
def test_an_average_stays_as_precise_and_as_frozen_as_it_is(operation: str):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = copy.deepcopy(model).to(torch.bfloat16).requires_grad_(False).eval()
    example = torch.zeros(2, 8)
    if operation == "keep":
        outcome = more_classes(model)
    elif operation == "hidden":
        outcome = surgery.replace_head(
            model, 6, heads="4", hidden=(3,), example=example, registry=NONE
        )
    else:
        added = nn.BatchNorm1d(16) if operation == "replace" else nn.PReLU()
        new = nn.Sequential(nn.Linear(16, 16) if operation == "replace" else model[3], added)
        outcome = surgery.replace(model, {"3": new}, example=example, registry=NONE)
    train(model, optimizer, batches(1))
    surgery.follow(optimizer, outcome, averages=average)
    held_now = (*average.parameters(), *average.buffers())
    assert {each.dtype for each in held_now if each.is_floating_point()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in average.parameters())
    assert not any(each.training for each in average.modules())
    average(torch.zeros(2, 8, dtype=torch.bfloat16))


def test_an_average_that_is_handed_over_twice_changes_once():
    model = network()
    both = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model[:4], model[4])]
    averaged = AveragedModel(model)
    outcome = more_classes(model)
    done = [surgery.follow(each, outcome, averages=[averaged, averaged]) for each in both]
    assert [len(each.averages) for each in done] == [1, 0]
    assert averaged.module[4].weight.shape == (7, 16)
    averaged.update_parameters(model)
    outcome.undo()
    for each in both:
        surgery.follow(each, outcome)
    assert averaged.module[4].weight.shape == (5, 16)
    averaged.update_parameters(model)


def test_the_averages_of_a_library_go_on():
    utils = pytest.importorskip("timm.utils")
    for kind in ("ModelEma", "ModelEmaV2", "ModelEmaV3"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        averaged = getattr(utils, kind)(model, decay=0.5)
        train(model, optimizer, batches(1))
        averaged.update(model)
        inner = averaged.ema if kind == "ModelEma" else averaged.module
        old = inner[4].weight.detach().clone()
        surgery.follow(optimizer, more_classes(model), averages=averaged)
        assert torch.equal(inner[4].weight[:5], old)
        assert torch.equal(inner[4].weight[5:], model[4].weight[5:])
        train(model, optimizer, batches(1))
        expected = (inner[4].weight + model[4].weight) / 2
        averaged.update(model)
        torch.testing.assert_close(inner[4].weight, expected)
