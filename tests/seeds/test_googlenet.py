"""Textbook cases 1 and 5: GoogLeNet's heads, and the layers that make its classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds import googlenet_head, googlenet_layers
from benchmarks.seeds.page import RESULTS


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    """Random weights, five classes, all frozen but the five layers."""
    model = models.googlenet(init_weights=False)
    googlenet_layers.prepare(model)
    return model


def test_the_one_head_gets_ten_classes():
    model = googlenet_head.network()
    (head,) = surgery.find_heads(model)
    assert (head.address, head.in_features, head.num_classes) == ("fc", 1024, 1000)
    surgery.replace_head(model, 10)
    assert model.fc.weight.shape == (10, 1024)
    assert googlenet_head.table() == (RESULTS / "googlenet_head.md").read_text("utf-8")


def test_with_its_auxiliary_heads_all_three_get_ten_classes():
    model = googlenet_head.network(aux_logits=True)
    roles = {head.address: head.role for head in surgery.find_heads(model)}
    assert roles == {"fc": "main", "aux1.fc2": "aux", "aux2.fc2": "aux"}
    surgery.replace_head(model, 10)
    assert {model.get_submodule(address).out_features for address in roles} == {10}


def test_the_figures_of_the_five_layers():
    # 2048 x 1024 + 1024 twice, and 1024 x 5 + 5 three times.
    model = googlenet_head.network(aux_logits=True)
    googlenet_layers.prepare(model)
    assert surgery.audit(model).trainable == 2 * 2_098_176 + 3 * 5_125
    assert googlenet_layers.table() == (RESULTS / "googlenet_layers.md").read_text("utf-8")


def test_logits_come_out_in_train_mode_and_a_tensor_in_eval_mode(taught: nn.Module):
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        outputs = taught.train()(images)
        tensor = taught.eval()(images)
    assert outputs.logits.shape == outputs.aux_logits1.shape == outputs.aux_logits2.shape == (2, 5)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (2, 5)


def test_a_step_moves_the_five_layers_and_nothing_else(taught: nn.Module):
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    optimizer = torch.optim.SGD(taught.parameters(), lr=0.1)
    outputs = taught.train()(torch.rand(2, 3, 224, 224))
    googlenet_layers.loss(outputs, torch.tensor([0, 3])).backward()
    optimizer.step()
    moved = {
        name.rpartition(".")[0]
        for name, value in taught.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == set(googlenet_layers.TRAINED)
