"""Textbook case 4: three layers of VGG-16, frozen, in a new network for grey images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds import vgg16_transplant
from surgery.errors import PlanError
from surgery.operations.plan import Outcome


@pytest.fixture(scope="module")
def donor() -> nn.Module:
    # The layers behind the features would take half a gigabyte, and none of them goes anywhere.
    with torch.device("meta"):
        model = models.vgg16()
    model.features.to_empty(device="cpu")
    for parameter in model.features.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.fixture
def network() -> nn.Module:
    return vgg16_transplant.new_network()


def transplanted(donor: nn.Module, network: nn.Module, **options: object) -> Outcome:
    return surgery.transplant(donor, network, vgg16_transplant.MAPPING, freeze=True, **options)


def test_the_figures_of_the_textbook(donor: nn.Module, network: nn.Module):
    outcome = transplanted(donor, network)
    assert outcome.model is network
    audit = surgery.audit(network)
    assert audit.total == 42_544_992
    assert audit.trainable == 40_146_464
    assert f"{audit.trainable_ratio:.2%}" == "94.36%"
    with torch.no_grad():
        assert network(torch.zeros(16, 1, 224, 224)).shape == (16, 2)
    table = vgg16_transplant.table(network, torch.zeros(16, 1, 224, 224))
    assert table == vgg16_transplant.RESULTS.read_text("utf-8")


def test_the_three_layers_are_the_donors_and_nothing_else_moved(
    donor: nn.Module, network: nn.Module
):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outcome = transplanted(donor, network)
    there = {ours: theirs for theirs, ours in vgg16_transplant.MAPPING.items()}
    for name, value in network.state_dict().items():
        layer, _, member = name.partition(".")
        wanted = before[name]
        if layer in there:
            wanted = donor.get_parameter(f"{there[layer]}.{member}")
        assert torch.equal(value, wanted), name
    outcome.undo()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_only_the_new_layers_learn(donor: nn.Module, network: nn.Module):
    transplanted(donor, network)
    frozen = {"conv2", "conv3", "conv5"}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.rand(2, 1, 224, 224)).logsumexp(1).sum().backward()
    optimizer.step()
    moved = {
        name.partition(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert not moved & frozen
    assert {"fc1", "fc2", "fc3"} <= moved


def test_a_convolution_without_padding_is_another_layer(donor: nn.Module, network: nn.Module):
    network.conv5 = nn.Conv2d(512, 512, 3)
    with pytest.raises(PlanError, match="padding: \\(1, 1\\) in the donor"):
        transplanted(donor, network)
