"""A dict and a model are sources like a file, and stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from surgery.errors import AmbiguousWeightsError, ArgumentError, UnsupportedModelError
from surgery.weights import memory, read


class Tied(nn.Module):
    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, device=device)
        self.head = nn.Linear(3, 5, bias=False, device=device)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(2, device=device))
        self.register_buffer("cache", torch.ones(2, device=device), persistent=False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_reads_as_the_file_it_would_be_saved_to(device: str):
    weights = read(Tied(device))
    assert (weights.origin, weights.format) == ("model Tied", "model")
    assert list(weights.tensors) == ["scale", "embed.weight", "head.weight"]
    assert weights.tensors["embed.weight"].aliases == ("head.weight",)
    assert weights.nbytes == 4 * (15 + 2)
    found = dict(weights.read_many())
    assert found["embed.weight"] is found["head.weight"]


def test_what_is_read_is_a_copy_without_a_gradient():
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    for source in model, model.state_dict():
        weights = read(source)
        tensor = weights.read("embed.weight")
        assert not tensor.requires_grad
        tensor.fill_(7)
        for _, each in weights.read_many():
            each.fill_(7)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_the_callers_dict_and_its_metadata_are_not_touched():
    state = Tied().state_dict()
    kept, metadata = dict(state), copy.deepcopy(state._metadata)
    weights = read(state)
    state.clear()
    assert list(weights.tensors) == list(kept), "what lay in it when it was opened"
    assert state._metadata == metadata


def test_a_wrapper_around_the_whole_model_is_passed_through():
    model = Tied()
    assert list(read(nn.DataParallel(model)).tensors) == list(read(model).tensors)


def test_views_are_told_apart():
    square = torch.arange(4.0).reshape(2, 2)
    facts = memory.describe(
        {"a": square, "t": square.t(), "row": square[0], "b": square.view(2, 2)}
    )
    assert {name: info.aliases for name, info in facts.items()} == {
        "a": ("b",),
        "t": (),
        "row": (),
        "b": ("a",),
    }
    empty = torch.empty(0)
    assert memory.describe({"a": empty, "b": torch.empty(0)})["a"].aliases == ()


def test_weights_are_a_source_too():
    weights = read({"ema": Tied().state_dict()})
    assert read(weights) is weights
    assert read(weights, inside="ema") is weights
    with pytest.raises(AmbiguousWeightsError):
        read(weights, inside="model")


@pytest.mark.parametrize("source", [None, 3, [torch.ones(1)], Tied, torch.ones(1), b"x.pth"])
def test_other_sources_are_refused(source: object):
    with pytest.raises(ArgumentError) as caught:
        read(source)
    assert caught.value.where == "source"


def test_models_that_cannot_be_read_are_refused():
    with pytest.raises(UnsupportedModelError):
        read(nn.LazyLinear(3))
    with pytest.raises(AmbiguousWeightsError):
        read(nn.ReLU())
    with pytest.raises(AmbiguousWeightsError):
        read(Tied(), inside="ema")
