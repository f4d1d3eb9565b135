"""Which entry of a training checkpoint holds the model's tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from surgery.errors import AmbiguousWeightsError
from surgery.weights import read

STATE = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}
ADAM = {
    "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
ENTRIES = [
    *("state_dict", "model", "model_state_dict", "model_state", "ema", "ema_state_dict"),
    *("model_ema", "module", "net", "network", "params_ema", "weights", "anything"),
]
BESIDE = {
    "epoch": 3,
    "arch": "net",
    "best_acc1": torch.tensor(76.1),
    "optimizer": ADAM,
    "optimizer_states": [ADAM],
    "lr_scheduler": {"last_epoch": 3, "buffer": torch.zeros(2)},
    "scaler": {"scale": torch.tensor(2.0)},
    "rng_state": torch.zeros(5, dtype=torch.uint8),
    "adamw": ADAM,
    "args": {"lr": 0.1},
}


@pytest.mark.parametrize("entry", ENTRIES[:-1])
@given(beside=st.sets(st.sampled_from(sorted(BESIDE))))
def test_the_model_is_found_whatever_lies_beside_it(entry: str, beside: set[str]):
    weights = read({**{name: BESIDE[name] for name in beside}, entry: STATE})
    assert weights.chosen == entry
    assert list(weights.tensors) == list(STATE)
    assert all(torch.equal(weights.read(name), STATE[name]) for name in STATE)
    (note,) = weights.notes if beside else ("",)
    assert all(name in note for name in beside), "nothing is lost silently"


def test_an_entry_of_any_name_is_taken_where_it_is_the_only_one():
    assert read({"anything": STATE, "optimizer": ADAM, "epoch": 1}).chosen == "anything"


@pytest.mark.parametrize("entry", ["ema", "teacher", "anything"])
def test_two_models_are_an_error_that_lists_them(entry: str):
    with pytest.raises(AmbiguousWeightsError) as caught:
        read({"model": STATE, entry: {"weight": torch.ones(1)}, "optimizer": ADAM})
    assert caught.value.found == f"'model': {len(STATE)} tensors\n{entry!r}: 1 tensor"
    assert caught.value.fix == "inside='model'"


@pytest.mark.parametrize(
    ("inside", "expected"),
    [("model", STATE), ("ema", OTHER), ("ema.module", OTHER)],
)
def test_inside_chooses(inside: str, expected: dict[str, torch.Tensor]):
    content = {"model": STATE, "ema": {"module": OTHER, "updates": 5}}
    weights = read(content, inside=inside)
    assert weights.chosen == ("model" if inside == "model" else "ema.module")
    assert all(torch.equal(weights.read(name), expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("content", "inside", "what"),
    [
        ({"model": STATE}, "ema", "no entry 'ema'"),
        ({"model": STATE}, "", "no entry ''"),
        (STATE, "ema", "no entry 'ema'"),
        ({"ema": {"a": STATE, "b": STATE}}, "ema", "2 entries lie inside 'ema'"),
        ({"model": STATE, "optimizer": ADAM}, "optimizer", "no entry 'optimizer'"),
    ],
)
def test_what_is_not_inside_is_an_error(content: Any, inside: str, what: str):
    with pytest.raises(AmbiguousWeightsError) as caught:
        read(content, inside=inside)
    assert caught.value.what == what


def test_a_lightning_checkpoint():
    weights = read(
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.5",
            "state_dict": STATE,
            "loops": {"fit_loop": {"best": torch.ones(1)}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
            "optimizer_states": [ADAM],
            "hyper_parameters": {"class_weights": torch.ones(3)},
        }
    )
    assert weights.chosen == "state_dict"
    assert "hyper_parameters (dict, 1 tensor)" in weights.notes[0]


def test_tensors_at_the_top():
    assert read(STATE).chosen is None
    assert read({**STATE, "optimizer": ADAM, "epoch": 3}).notes == (
        "no tensor by name, left out: optimizer (dict, 2 tensors), epoch=3",
    )
    # What a module's get_extra_state returned is no second model.
    assert read({**STATE, "_extra_state": {"scale": torch.ones(1)}}).chosen is None
    with pytest.raises(AmbiguousWeightsError, match="2 entries"):
        read({**STATE, "ema": OTHER})
    assert read({**STATE, "ema": OTHER}, inside="").chosen is None
    assert read({**STATE, "ema": OTHER}, inside="ema").chosen == "ema"


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {0: torch.ones(1)}, {"list": [STATE]}])
def test_nothing_to_load_is_an_error(content: dict[Any, Any]):
    with pytest.raises(AmbiguousWeightsError, match="holds no model's tensors"):
        read(content)


def test_a_dict_that_holds_itself_ends():
    loop: dict[str, Any] = {"epoch": 1}
    loop["again"] = loop
    with pytest.raises(AmbiguousWeightsError):
        read(loop)
    assert read({"model": STATE, "loop": loop}).chosen == "model"


def test_versions_of_modules_are_metadata():
    assert read(STATE).metadata == {"": "1", "0": "1", "1": "2"}
