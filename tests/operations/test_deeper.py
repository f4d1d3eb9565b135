"""Heads of several layers: hidden layers and dropout in front of the last."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import surgery
from surgery.errors import ArgumentError, PlanError
from surgery.operations.deeper import check_depth
from tests.hostile import Headed, Pair, conv, images, mlp, vectors
from tests.operations.state import differences, state_of
from tests.operations.test_head_hostile import NO_PLUGINS, grown, run
from tests.strategies import Classifier, classifiers


def test_hidden_layers_with_dropout_behind_each() -> None:
    model = Headed()
    outcome = surgery.replace_head(
        model, 7, heads="fc", hidden=(6, 4), dropout=0.5, example=vectors()()
    )
    assert [type(layer).__name__ for layer in model.fc] == [
        *("Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear")
    ]
    sizes = [(x.in_features, x.out_features) for x in model.fc if isinstance(x, nn.Linear)]
    assert sizes == [(8, 6), (6, 4), (4, 7)]
    assert {layer.p for layer in model.fc if isinstance(layer, nn.Dropout)} == {0.5}
    assert [str(step) for step in outcome.plan.steps] == [
        "module fc: Linear (8 -> 5) -> Sequential (8 -> 6 -> 4 -> 7)"
    ]
    assert model(vectors()()).shape == (2, 7)


def test_the_same_seed_gives_the_layers_one_would_write_by_hand() -> None:
    model = Headed()
    torch.manual_seed(3)
    twin = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 7))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    surgery.replace_head(model, 7, heads="fc", hidden=(6,), example=vectors()())
    assert torch.equal(torch.get_rng_state(), state)
    mine, its = model.fc.state_dict(), twin.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_a_generator_leaves_the_global_state_alone() -> None:
    state, made = torch.get_rng_state(), []
    for _ in range(2):
        model = Headed()
        torch.set_rng_state(state)
        generator = torch.Generator().manual_seed(3)
        surgery.replace_head(
            model, 7, heads="fc", hidden=6, generator=generator, example=vectors()()
        )
        assert torch.equal(torch.get_rng_state(), state)
        made.append(model.fc.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_init_is_about_the_last_layer() -> None:
    model = Headed()
    surgery.replace_head(model, 7, heads="fc", hidden=(6,), init="zeros", example=vectors()())
    assert not any(p.any() for p in model.fc[2].parameters())
    assert all(p.all() for p in model.fc[0].parameters())
    assert torch.equal(model(vectors()()), torch.zeros(2, 7))


def test_dropout_alone() -> None:
    model = Headed()
    surgery.replace_head(model, 7, heads="fc", dropout=0.2, example=vectors()())
    assert [type(layer).__name__ for layer in model.fc] == ["Dropout", "Linear"]


@settings(max_examples=25)
@given(
    classifiers(),
    st.integers(1, 20),
    st.lists(st.integers(1, 12), max_size=3),
    st.sampled_from([0.0, 0.5]),
)
def test_any_depth_or_a_clear_refusal(
    drawn: Classifier, classes: int, hidden: list[int], dropout: float
) -> None:
    model, example, truth = drawn
    old = run(copy.deepcopy(model), example)
    before = state_of(model, example)
    options: dict[str, Any] = {"hidden": hidden, "dropout": dropout, "heads": list(truth.heads)}
    options |= {"example": example, "registry": NO_PLUGINS}
    [address] = truth.heads
    layer = model.get_submodule(address)
    plain = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    if not plain and (hidden or dropout):
        with pytest.raises(PlanError, match="cannot be given hidden layers") as raised:
            surgery.replace_head(model, classes, **options)
        assert raised.value.where == address
    else:
        outcome = surgery.replace_head(model, classes, **options)
        new = run(copy.deepcopy(model), grown(example, 3, 1))
        for path, axis in truth.outputs.items():
            assert new[path].shape[axis] == classes
            assert new[path].dim() == old[path].dim()
        outcome.undo()
    assert not differences(before, state_of(model, example))


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 5, 3, stride=2), nn.Conv2d(8, 5, 1, bias=False)])
def test_convolutions_look_at_the_same_neighbourhood(layer: nn.Conv2d) -> None:
    model = Pair(conv(3, 8), layer)
    before = model(images()()).shape
    surgery.replace_head(model, 7, heads="head", hidden=(6,), example=images()())
    assert model(images()()).shape == (2, 7, *before[2:])
    first, last = model.head[0], model.head[2]
    assert (first.kernel_size, first.stride) == (layer.kernel_size, layer.stride)
    assert last.kernel_size == (1, 1)
    assert (last.bias is None) == (layer.bias is None)
    assert first.bias is not None


def test_what_lies_behind_and_every_address_follow() -> None:
    model = nn.Sequential(Headed(), nn.BatchNorm1d(5))
    model[0].alias = model[0].fc
    outcome = surgery.replace_head(model, 7, heads="0.fc", hidden=(6,), example=vectors()())
    assert model[0].alias is model[0].fc
    assert model[1].num_features == 7
    assert model(vectors()()).shape == (2, 7)
    outcome.undo()
    assert model[0].alias is model[0].fc
    assert isinstance(model[0].fc, nn.Linear)


def test_mode_hooks_dtype_and_flags_carry_over() -> None:
    model = Headed().to(torch.float64).requires_grad_(False)
    seen: list[str] = []
    handle = model.fc.register_forward_hook(lambda *_: seen.append("hook"))
    model.fc.eval()
    surgery.replace_head(
        model, 7, heads="fc", hidden=(6,), dropout=0.5, example=vectors()().double()
    )
    assert all(not layer.training for layer in model.fc.modules())
    assert {p.dtype for p in model.fc.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in model.fc.parameters())
    seen.clear()
    model(vectors()().double())
    assert seen == ["hook"]
    handle.remove()
    model(vectors()().double())
    assert seen == ["hook"]


@pytest.mark.parametrize("trainable", [True, False, None])
def test_trainable(trainable: bool | None) -> None:
    model = Headed().requires_grad_(False)
    surgery.replace_head(
        model, 7, heads="fc", hidden=(6,), trainable=trainable, example=vectors()()
    )
    assert {p.requires_grad for p in model.fc.parameters()} == {bool(trainable)}


def test_on_meta() -> None:
    with torch.device("meta"):
        model = Headed()
    surgery.replace_head(model, 7, heads="fc", hidden=(6,), example=vectors()())
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_model_that_is_its_head_becomes_another_object() -> None:
    model = nn.Linear(8, 5)
    outcome = surgery.replace_head(model, 7, heads="", hidden=(6,), example=vectors()())
    assert outcome.model is not model
    assert outcome.model(vectors()()).shape == (2, 7)
    assert model(vectors()()).shape == (2, 5)
    assert outcome.undo() is model


def test_a_deeper_head_is_found_and_replaced_again() -> None:
    model = Headed()
    surgery.replace_head(model, 7, heads="fc", hidden=(6,), example=vectors()())
    surgery.replace_head(model, 9, heads="fc", example=vectors()())
    assert model.fc[2].out_features == 9
    assert model.fc[0].out_features == 6


class Normed(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.normalize(x))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Normed(8, 5), "Normed has a forward of its own"),
        (parametrizations.weight_norm(nn.Linear(8, 5)), "not computed from others"),
    ],
)
def test_what_the_new_layers_do_not_do_is_said(layer: nn.Module, says: str) -> None:
    model = Pair(mlp(), layer)
    outcome = surgery.replace_head(model, 7, heads="head", hidden=(6,), example=vectors()())
    assert any(says in note for note in outcome.plan.notes)
    assert type(model.head[0]) is nn.Linear


def test_a_plain_layer_needs_no_remark() -> None:
    outcome = surgery.replace_head(Headed(), 7, heads="fc", hidden=(6,), example=vectors()())
    assert outcome.plan.notes == ()


@pytest.mark.parametrize("hidden", [0, -1, (0,), (4, 0), True, 2.0, "x", (4, "x"), (4.0,), None])
def test_wrong_sizes(hidden: Any) -> None:
    with pytest.raises(ArgumentError, match="given by their sizes") as raised:
        surgery.replace_head(Headed(), 7, hidden=hidden)
    assert raised.value.where == "hidden"
    assert raised.value.expected == "whole numbers of at least 1, as in (4096, 2048)"
    assert "hidden=(512,)" in str(raised.value.fix)


@pytest.mark.parametrize("dropout", [1, 1.0, -0.1, float("nan"), "0.5", True, None])
def test_wrong_dropout(dropout: Any) -> None:
    with pytest.raises(ArgumentError, match="probability to drop") as raised:
        surgery.replace_head(Headed(), 7, dropout=dropout)
    assert (raised.value.where, raised.value.found) == ("dropout", repr(dropout))
    assert raised.value.expected == "a number from 0 to below 1"


def test_right_sizes_in_any_form() -> None:
    assert check_depth(4, 0) == ((4,), 0.0)
    assert check_depth([4, 3], 0.5) == ((4, 3), 0.5)
    assert check_depth((), 0) == ((), 0.0)
    assert check_depth(torch.Size([4]), 0) == ((4,), 0.0)


def test_other_kinds_are_refused() -> None:
    model = Pair(conv(3, 8), nn.ConvTranspose2d(8, 5, 2))
    with pytest.raises(PlanError, match="'conv_transpose2d' cannot be given") as raised:
        surgery.replace_head(model, 7, heads="head", hidden=(6,), example=images()())
    assert (raised.value.where, raised.value.found) == ("head", "ConvTranspose2d")
    assert "surgery.replace(model, {'head': module})" in str(raised.value.fix)


def test_more_than_memory_holds() -> None:
    with pytest.raises(
        PlanError, match="no memory for a tensor of 1000000000000000 by 8"
    ) as raised:
        surgery.replace_head(Headed(), 7, heads="fc", hidden=10**15, example=vectors()())
    assert "bytes on cpu" in str(raised.value.expected)


def test_vgg_as_in_the_papers() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg11()
    example = torch.zeros(2, 3, 64, 64)
    outcome = surgery.replace_head(
        model, 7, heads="classifier", hidden=(4096, 2048), dropout=0.5, example=example
    )
    assert outcome.plan.steps[0].after == "Sequential (4096 -> 4096 -> 2048 -> 7)"
    assert {change.after.shape for change in outcome.plan.outputs} == {(2, 7)}
