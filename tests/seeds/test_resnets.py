"""Textbook cases 6 and 8: ResNet-50 for five classes, and the residual networks by block."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds import resnet50_head, resnet_blocks
from benchmarks.seeds.page import RESULTS


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {name: resnet_blocks.network(name) for name in resnet_blocks.NAMES}


def test_of_resnet50_only_fc_learns():
    model = resnet50_head.network()
    resnet50_head.prepare(model)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning == ["fc.weight", "fc.bias"]
    assert model.fc.weight.shape == (5, 2048)
    audit = surgery.audit(model)
    assert (audit.total, audit.trainable) == (23_518_277, 10_245)
    assert resnet50_head.table() == (RESULTS / "resnet50_head.md").read_text("utf-8")


def test_a_frozen_resnet50_keeps_its_statistics_while_fc_learns():
    model = models.resnet50()
    resnet50_head.prepare(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model.train()(torch.rand(2, 3, 64, 64))
    nn.functional.cross_entropy(logits, torch.tensor([1, 4])).backward()
    optimizer.step()
    after = model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", resnet_blocks.NAMES)
def test_the_blocks_add_up_to_what_torchvision_publishes(name: str, networks: dict[str, nn.Module]):
    counted = resnet_blocks.blocks(networks[name])
    published = models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(counted.values()) == published
    depths = {stage: len(networks[name].get_submodule(stage)) for stage in resnet_blocks.STAGES}
    found = [address for address in counted if "." in address]
    assert found == [f"{stage}.{n}" for stage, depth in depths.items() for n in range(depth)]


def test_a_bottleneck_holds_an_eighth_of_what_one_plain_layer_holds(
    networks: dict[str, nn.Module],
):
    bottleneck = resnet_blocks.convolutions(networks["resnet50"], "layer1.1")
    assert list(bottleneck.values()) == [256 * 64, 64 * 64 * 9, 64 * 256]
    assert sum(bottleneck.values()) == 69_632
    plain = resnet_blocks.convolutions(networks["resnet34"], "layer3.1")
    assert list(plain.values()) == [589_824, 589_824]


def test_the_table_of_blocks():
    assert resnet_blocks.table() == (RESULTS / "resnet_blocks.md").read_text("utf-8")
