"""Layers that stay in eval mode: which they are, and the mode that they come back to."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import spectral_norm as older_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

import surgery
from tests.operations.state import differences, state_of

GENERATOR = torch.Generator().manual_seed(0)
EVENTS = ["train", "eval", "0.train", "0.eval", "freeze", "unfreeze", "release", "undo"]


def nested() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), spectral_norm(nn.Linear(2, 2)))
    return nn.Sequential(inner, nn.BatchNorm1d(2))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def asked(model: nn.Module, event: str) -> None:
    part, _, mode = event.rpartition(".")
    model.get_submodule(part).train(mode == "train")


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_a_layer_let_go_has_the_mode_of_one_that_was_never_held(events: list[str]):
    model, twin = nested(), nested()
    done: list[surgery.Outcome] = []
    verbs: dict[str, Callable[[], surgery.Outcome]] = {
        "freeze": lambda: surgery.freeze(model),
        "unfreeze": lambda: surgery.unfreeze(model),
        "release": lambda: surgery.freeze(model, norm="train"),
    }
    for event in events:
        if event in verbs:
            done.append(verbs[event]())
        elif event == "undo":
            if done:
                done.pop().undo()
        else:
            asked(model, event)
            asked(twin, event)
        held = {id(m) for m in model.modules() if "train" in vars(m)}
        for module, other in zip(model.modules(), twin.modules(), strict=True):
            assert module.training is (other.training and id(module) not in held)
    while done:
        done.pop().undo()
    assert modes(model) == modes(twin)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_copy_is_let_go_into_the_mode_it_was_asked_for(way: Any, before: bool, after: bool):
    model = nn.BatchNorm1d(2).train(before)
    surgery.freeze(model)
    other = way(model)
    assert other.train(after) is other
    assert not other.training
    surgery.unfreeze(other)
    assert other.training is after
    assert "train" in vars(model)


def test_a_layer_that_was_set_apart_keeps_its_own_mode_through_undo():
    model = nested()
    model[1].eval()
    before = state_of(model)
    surgery.freeze(model).undo()
    assert not differences(before, state_of(model))


NAMES: dict[str, Any] = {
    "all parameters": [name for name, _ in nn.Sequential(nn.BatchNorm1d(2)).named_parameters()],
    "pattern": "0.*",
    "expression": re.compile(r"0\.(weight|bias)"),
    "callable": lambda name: name in ("0.weight", "0.bias"),
    "module": "0",
    "statistics": "0.running_var",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_frozen_by_whatever_names_it(name: str):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    outcome = surgery.freeze(model, NAMES[name])
    model.train()
    assert [module.training for module in model] == [False, True]
    assert outcome.plan.notes == ()
    surgery.unfreeze(model, NAMES[name])
    assert [module.training for module in model] == [True, True]
    surgery.freeze(model, except_=NAMES[name])
    assert [module.training for module in model] == [True, False]


@pytest.mark.parametrize("name", ["*.weight", "0.bias"])
def test_a_layer_that_is_frozen_in_part_moves_and_a_note_says_so(name: str):
    model = nn.Sequential(nn.BatchNorm1d(2))
    outcome = surgery.freeze(model, name)
    assert model.train()[0].training
    (note,) = outcome.plan.notes
    assert note.startswith("statistics go on moving in 0:")
    assert surgery.freeze(model, except_="*").plan.notes == ()


def test_a_layer_without_parameters_moves_where_all_of_them_are_frozen_and_a_note_says_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    outcome = surgery.freeze(model, ["0.weight", "0.bias"])
    assert model.train()[1].training
    assert outcome.plan.notes[0].startswith("statistics go on moving in 1:")
    assert surgery.freeze(model).plan.notes == ()


class Scaled(nn.Module):
    """A norm by hand that keeps a variance alone, with a part inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.full((2,), 3.0))
        self.inner = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.running_var.lerp_(x.detach().var(0), 0.1)
        return x / self.running_var


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a variance alone": Scaled,
    "spectral norm": lambda: spectral_norm(nn.Linear(2, 3)),
    "older spectral norm": lambda: older_spectral_norm(nn.Linear(2, 3)),
    "spectral norm of a convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 1, 1)), spectral_norm(nn.Conv2d(2, 3, 1, bias=False)), nn.Flatten()
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_all_that_a_frozen_layer_moves_is_held(name: str):
    model = nn.Sequential(LAYERS[name]())
    for key, vector in model.named_buffers():
        if key.endswith(("_u", "_v")):
            # Torch starts with vectors that hardly move any more.
            vector.copy_(torch.eye(len(vector))[0])
    x = torch.randn(5, 2, generator=GENERATOR)
    expected = model.eval()(x)
    surgery.freeze(model)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    surgery.unfreeze(model)
    model(x)
    assert not all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_spectral_norm_is_frozen_with_its_weight():
    model = nn.Sequential(spectral_norm(nn.Linear(2, 2)), spectral_norm(nn.Linear(2, 2)))
    surgery.freeze(model, "0.parametrizations.weight.original")
    model.train()
    assert [layer.parametrizations.weight[0].training for layer in model] == [False, True]


def test_layers_of_a_timm_model_that_keep_a_variance_alone():
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(layers.EvoNorm2dB0(4))
    x = torch.randn(2, 4, 3, 3, generator=GENERATOR)
    expected = model.eval()(x)
    surgery.freeze(model)
    assert torch.equal(model.train()(x), expected)


def test_what_lies_inside_a_held_layer_follows_the_mode():
    model = nn.Sequential(Scaled())
    surgery.freeze(model)
    for mode in (False, True):
        model.train(mode)
        assert (model[0].training, model[0].inner.training) == (False, mode)


def test_norm_train_lets_layers_go_that_were_held():
    model = nested()
    surgery.freeze(model)
    outcome = surgery.freeze(model, norm="train", except_="1")
    assert model[0][1].training
    assert not model[1].training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    outcome.undo()
    assert not model.train()[0][1].training


def test_a_train_of_the_users_own_comes_back():
    calls: list[bool] = []
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].train = own = calls.append
    surgery.freeze(model).undo()
    assert vars(model[0])["train"] is own
    surgery.freeze(model)
    model.train()
    assert calls == []
    surgery.unfreeze(model)
    assert vars(model[0])["train"] is own
    model.train()
    assert calls == [True]


def test_a_shallow_copy_stays_in_eval_and_is_its_own_once_it_is_frozen():
    norm = nn.BatchNorm1d(2)
    surgery.freeze(norm)
    for other in (copy.copy(norm), norm._replicate_for_data_parallel()):
        other.train()
        assert not other.training
    other = copy.copy(norm)
    surgery.freeze(other)
    assert other.train() is other
    assert norm.train() is norm
    surgery.unfreeze(other)
    assert other.training
    assert not norm.training


def test_a_mode_that_was_set_by_hand_is_taken_back_by_freezing_again():
    model = nn.Sequential(nn.BatchNorm1d(2))
    surgery.freeze(model)
    for module in model.modules():
        module.training = True
    surgery.freeze(model)
    assert not model[0].training
