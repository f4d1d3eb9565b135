"""Another number of input channels: the same answers where there should be, and undone whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.errors import (
    ArgumentError,
    ClaimContradictedError,
    PlanError,
)
from surgery.families.family import Family
from surgery.families.registry import Registry
from tests.operations.adapting import NO_PLUGINS, conv, image, refused
from tests.operations.state import differences, state_of


class Patches(nn.Module):
    """A linear patch embedding, with the channels of each patch last or first."""

    def __init__(self, channels: int = 3, last: bool = True) -> None:
        super().__init__()
        self.last, self.channels = last, channels
        self.proj = nn.Linear(16 * channels, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 4, 4, width // 4, 4)
        x = x.permute(0, 2, 4, 3, 5, 1) if self.last else x.permute(0, 2, 4, 1, 3, 5)
        return self.proj(x.reshape(batch, -1, 16 * channels)).mean(1)


class Focus(nn.Module):
    """Four shifted copies, one behind the other: twelve channels of three."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., a::2, b::2] for b in (0, 1) for a in (0, 1)]
        return self.conv(torch.cat(parts, 1)).mean((2, 3))


class Normed(nn.Module):
    """Normalises what it gets, by a value a channel."""

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.conv = nn.Conv2d(len(mean), 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x - self.mean) / self.std).mean((2, 3))


class Branches(nn.Module):
    """Two first layers behind one input."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5, padding=1)
        self.config = SimpleNamespace(num_channels=3, vision_config={"in_chans": 3})
        self.in_channels = 3

    def forward(self, pixels: Tensor) -> Tensor:
        return (self.fine(pixels) + self.coarse(pixels)).mean((2, 3))


class Pair(nn.Module):
    """Two inputs, each with a layer of its own, or with one for both."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3)
        self.right = self.left if shared else nn.Conv2d(3, 4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.left(left) + self.right(right)).mean((2, 3))


MODELS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding_mode="circular", padding=1), (2, 3, 9)),
    "conv2d": (lambda: conv(padding=1, padding_mode="reflect"), (2, 3, 16, 16)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 8, 8)),
    "channels last": (lambda: conv().to(memory_format=torch.channels_last), (2, 3, 8, 8)),
    "patches, channels last": (Patches, (2, 3, 8, 12)),
    "patches, channels first": (lambda: Patches(last=False), (2, 3, 8, 12)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4)), (2, 3, 4, 4)),
    "focus": (Focus, (2, 3, 8, 8)),
    "normed alike": (lambda: Normed([0.5] * 3, [0.2] * 3), (2, 3, 8, 8)),
    "batch norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), conv()).eval(), (2, 3, 8, 8)),
    "two first layers": (Branches, (2, 3, 8, 8)),
    "double precision": (lambda: conv().double(), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("how", ["auto", "sum"])
@pytest.mark.parametrize("name", MODELS)
def test_grey_given_as_grey_answers_as_grey_given_three_times(name: str, how: Any) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    before = state_of(model, process=False)
    dtype = next(model.parameters()).dtype
    grey = torch.rand(shape[0], 1, *shape[2:], dtype=dtype)
    example = torch.zeros(shape, dtype=dtype)
    expected = model(grey.expand(shape))
    outcome = surgery.adapt_input(
        model, in_channels=1, how=how, example=example, registry=NO_PLUGINS
    )
    torch.testing.assert_close(model(grey), expected)
    assert outcome.model is model
    assert all(check.passed for check in outcome.checks)
    with pytest.raises(RuntimeError):
        model(torch.rand(shape, dtype=dtype))
    outcome.undo()
    assert not differences(before, state_of(model, process=False))


@settings(max_examples=30, deadline=None)
@given(
    old=st.integers(1, 4),
    new=st.integers(1, 9),
    how=st.sampled_from(["sum", "repeat"]),
    data=st.data(),
)
def test_equal_channels_answer_as_they_did(old: int, new: int, how: Any, data: Any) -> None:
    kind = data.draw(st.sampled_from(["conv", "patches"]))
    model = nn.Conv2d(old, 3, 3) if kind == "conv" else Patches(old)
    if kind == "patches" and old == 1:
        return
    grey = torch.rand(1, 1, 8, 8)
    expected = model(grey.expand(-1, old, -1, -1))
    example = torch.zeros(2, old, 8, 8)
    surgery.adapt_input(model, in_channels=new, how=how, example=example, registry=NO_PLUGINS)
    found = model(grey.expand(-1, new, -1, -1))
    if how == "sum" or new % old == 0:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("new", "order"), [(2, [0, 1]), (4, [0, 1, 2, 0]), (7, [0, 1, 2, 0, 1, 2, 0])]
)
def test_weights_are_repeated_and_scaled(new: int, order: list[int]) -> None:
    model = conv()
    old = model[0].weight.detach().clone()
    outcome = surgery.adapt_input(model, in_channels=new, example=image(), registry=NO_PLUGINS)
    torch.testing.assert_close(model[0].weight.detach(), old[:, order] * (3 / new))
    assert model[0].in_channels == new
    assert outcome.plan.parameters[1] - outcome.plan.parameters[0] == 8 * 9 * (new - 3)
    assert {change.mode for change in outcome.plan.outputs} == {"eval", "train"}


def test_the_layer_stays_and_keeps_what_hangs_on_it() -> None:
    model = conv(padding=2, stride=2, bias=False).to(torch.bfloat16)
    layer, calls = model[0], []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.weight.requires_grad_(False)
    surgery.adapt_input(model, in_channels=5, example=image().bfloat16(), registry=NO_PLUGINS)
    assert model[0] is layer
    assert (layer.stride, layer.padding, layer.bias) == ((2, 2), (2, 2), None)
    assert (layer.weight.dtype, layer.weight.requires_grad) == (torch.bfloat16, False)
    calls.clear()
    model(image(5).bfloat16())
    assert calls


def test_a_tied_stem_stays_tied_and_other_facts_follow() -> None:
    model = Branches()
    model.again = model.fine
    surgery.adapt_input(model, in_channels=1, example=image(), registry=NO_PLUGINS)
    assert model.again.weight is model.fine.weight
    assert model.in_channels == model.config.num_channels == 1
    assert model.config.vision_config == {"in_chans": 1}
    assert model.coarse.in_channels == model.fine.in_channels == 1


def test_a_callable_makes_the_weight() -> None:
    def first(weight: Tensor, channels: int) -> Tensor:
        assert tuple(weight.shape) == (8, 3, 3, 3)
        return weight[:, :1].repeat(1, channels, 1, 1)

    model = conv()
    old = model[0].weight.detach().clone()
    surgery.adapt_input(model, in_channels=4, how=first, example=image(), registry=NO_PLUGINS)
    assert torch.equal(model[0].weight.detach(), old[:, [0, 0, 0, 0]])
    flat = Patches(last=False)
    weight = flat.proj.weight.detach().clone().reshape(6, 3, 16)
    surgery.adapt_input(
        flat, in_channels=1, how=lambda w, n: w[:, 1:2], example=image(), registry=NO_PLUGINS
    )
    assert torch.equal(flat.proj.weight.detach(), weight[:, 1])


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def normalised(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    shape = (1, -1, *([1] * (x.dim() - 2)))
    return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("build", "address"),
    [
        (lambda: conv(), "0.bias"),
        (lambda: conv(bias=False), "1.running_mean"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()), "0.bias"),
        (lambda: conv(padding=1, padding_mode="replicate"), "0.bias"),
        (lambda: Patches(last=False), "proj.bias"),
        (Focus, "conv.bias"),
    ],
)
@pytest.mark.parametrize("new", [1, 3, 6])
def test_another_normalisation_is_folded_in(build: Any, address: str, new: int) -> None:
    torch.manual_seed(1)
    model = statistics(build())
    mean, std = [0.3 + 0.02 * i for i in range(new)], [0.2 + 0.01 * i for i in range(new)]
    raw = torch.rand(2, 1, 16, 16)
    expected = model(normalised(raw.expand(-1, 3, -1, -1), MEAN, STD))
    before = state_of(model, process=False)
    outcome = surgery.adapt_input(
        model,
        in_channels=None if new == 3 else new,
        mean=(MEAN, mean),
        std=(STD, std),
        example=image(),
        registry=NO_PLUGINS,
    )
    assert address in [step.address for step in outcome.plan.steps]
    found = model(normalised(raw.expand(-1, new, -1, -1), mean, std))
    if isinstance(build(), Focus):
        # Zeros around the picture stand for something else then: said, and only there.
        assert any("borders" in note for note in outcome.plan.notes)
    else:
        assert not any("borders" in note for note in outcome.plan.notes)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    outcome.undo()
    assert not differences(before, state_of(model, process=False))


def test_zero_padding_moves_the_borders_and_nothing_else() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    raw = image()
    expected = model(normalised(raw, MEAN, STD))
    outcome = surgery.adapt_input(
        model, mean=(MEAN, [0.1] * 3), std=(STD, 0.5), example=image(), registry=NO_PLUGINS
    )
    found = model(normalised(raw, [0.1] * 3, [0.5] * 3))
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-5, rtol=1e-4)
    assert (found - expected).abs().max() > 0.1
    assert any("borders" in note for note in outcome.plan.notes)


def test_means_of_equal_size_need_no_bias() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    outcome = surgery.adapt_input(
        model, in_channels=1, std=(STD, 0.2), example=image(), registry=NO_PLUGINS
    )
    assert list(outcome.new) == ["weight"]


@pytest.mark.parametrize("new", [4, 6])
def test_normalisation_inside_the_model_is_repeated(new: int) -> None:
    model = Normed(MEAN, STD)
    surgery.adapt_input(model, in_channels=new, example=image(), registry=NO_PLUGINS)
    assert model.mean.flatten().tolist() == pytest.approx([MEAN[i % 3] for i in range(new)])
    assert model(image(new)).shape == (2, 4)


def test_normalisation_of_each_channel_by_itself_is_refused_where_channels_go() -> None:
    refused(Normed(MEAN, STD), PlanError, "mean", example=image(), in_channels=1)


def test_inputs_that_share_a_layer_change_together() -> None:
    model = Pair(shared=True)
    example = (image(), image())
    surgery.adapt_input(model, in_channels=2, example=example, registry=NO_PLUGINS)
    assert model(image(2), image(2)).shape == (2, 4)


def test_several_inputs_must_be_chosen_from() -> None:
    model, example = Pair(), (image(), image())
    error = refused(model, ArgumentError, "inputs", in_channels=1, example=example)
    assert "args[0]: left.weight" in str(error)
    assert "args[1]: right.weight" in str(error)
    refused(model, ArgumentError, "inputs", in_channels=1, example=example, inputs="args[2]")
    refused(model, ArgumentError, "inputs", in_channels=1, example=example, inputs=())
    surgery.adapt_input(
        model, in_channels=1, inputs="args[1]", example=example, registry=NO_PLUGINS
    )
    assert model(image(3), image(1)).shape == (2, 4)
    named = Pair()
    pixels = {"left": image(), "right": image()}
    surgery.adapt_input(
        named, in_channels=1, inputs=["left", "right"], example=pixels, registry=NO_PLUGINS
    )
    assert named(image(1), image(1)).shape == (2, 4)


def test_the_family_decides_between_inputs_and_is_held_to_its_word() -> None:
    family = Family("pair", (f"{Pair.__module__}.Pair",), stem=("right",))
    model = Pair()
    surgery.adapt_input(
        model, in_channels=1, example=(image(), image()), registry=Registry.of(family)
    )
    assert model(image(3), image(1)).shape == (2, 4)
    wrong = Registry.of(Family("wrong", (f"{Branches.__module__}.Branches",), stem=("config",)))
    with pytest.raises(ClaimContradictedError, match="wrong"):
        surgery.adapt_input(Branches(), in_channels=1, example=image(), registry=wrong)


def test_a_dry_run_touches_nothing() -> None:
    model = conv()
    before = state_of(model)
    outcome = surgery.adapt_input(
        model, in_channels=1, example=image(), dry_run=True, registry=NO_PLUGINS
    )
    assert [step.address for step in outcome.plan.steps] == ["0.weight", "0.in_channels"]
    assert not differences(before, state_of(model))


def test_as_many_channels_as_there_are_is_nothing_to_do() -> None:
    model = conv()
    before = state_of(model)
    outcome = surgery.adapt_input(model, in_channels=3, example=image(), registry=NO_PLUGINS)
    assert not outcome.plan.steps
    assert "already" in outcome.plan.notes[0]
    outcome.undo()
    assert not differences(before, state_of(model))


def test_a_model_on_meta_and_one_in_inference_mode_will_do() -> None:
    with torch.device("meta"):
        model = conv()
        surgery.adapt_input(model, in_channels=1, registry=NO_PLUGINS)
    assert tuple(model[0].weight.shape) == (8, 1, 3, 3)
    live = conv()
    with torch.inference_mode():
        surgery.adapt_input(live, in_channels=1, example=image(), registry=NO_PLUGINS)
    live(image(1)).sum().backward()
    assert live[0].weight.grad is not None


def test_an_outcome_can_be_undone_after_training() -> None:
    model = conv()
    old, before = model[0].weight, model[0].weight.detach().clone()
    outcome = surgery.adapt_input(model, in_channels=2, example=image(), registry=NO_PLUGINS)
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    model(image(2)).sum().backward()
    optimizer.step()
    outcome.undo()
    assert model[0].weight is old
    assert torch.equal(old.detach(), before)
