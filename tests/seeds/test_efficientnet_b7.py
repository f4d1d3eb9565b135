"""Textbook case 7: EfficientNet-B7 of efficientnet-pytorch with a deeper head."""

from __future__ import annotations

import pytest
from torch import nn

import surgery
from benchmarks.seeds import efficientnet_b7_head
from benchmarks.seeds.page import RESULTS


@pytest.fixture(scope="module")
def outcome() -> surgery.Outcome:
    return efficientnet_b7_head.prepare(efficientnet_b7_head.network())


def test_the_head_goes_from_2560_over_4096_and_2048_to_5(outcome: surgery.Outcome):
    layers = list(outcome.model._fc)
    kinds = [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    sizes = [(layer.in_features, layer.out_features) for layer in layers[::3]]
    assert sizes == [(2560, 4096), (4096, 2048), (2048, 5)]
    # Between the layers; in front of the first one stands the network's own.
    assert [layer.p for layer in (outcome.model._dropout, *layers[2::3])] == [0.5, 0.5, 0.5]


def test_the_figures(outcome: surgery.Outcome):
    layers = [2560 * 4096 + 4096, 4096 * 2048 + 2048, 2048 * 5 + 5]
    audit = surgery.audit(outcome.model)
    assert audit.at("_fc").total == sum(layers)
    assert audit.total == 66_347_960 - (2560 * 1000 + 1000) + sum(layers)
    assert outcome.model._global_params.num_classes == 5
    text = (RESULTS / "efficientnet_b7_head.md").read_text("utf-8")
    assert efficientnet_b7_head.table(outcome) == text
