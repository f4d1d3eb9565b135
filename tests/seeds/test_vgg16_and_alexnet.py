"""Textbook case 3: VGG-16 for cats and dogs, and AlexNet of 2012 layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import surgery
from benchmarks.seeds import alexnet_layers, vgg16_cats_and_dogs
from benchmarks.seeds.page import RESULTS


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    model = vgg16_cats_and_dogs.network()
    vgg16_cats_and_dogs.prepare(model)
    return model


def test_only_the_two_new_layers_of_vgg16_learn(vgg16: nn.Module):
    learning = {name for name, parameter in vgg16.named_parameters() if parameter.requires_grad}
    assert learning == {
        f"classifier.{layer}.{member}" for layer in (3, 6) for member in ("weight", "bias")
    }
    assert (vgg16.classifier[3].out_features, vgg16.classifier[6].out_features) == (4096, 2)


def test_the_listing_of_vgg16_names_every_layer_once(vgg16: nn.Module):
    listing = vgg16_cats_and_dogs.listing(vgg16)
    layers = [
        name for name, module in vgg16.named_modules() if list(module.parameters(recurse=False))
    ]
    assert [address for address, *_ in listing] == layers
    assert len(layers) == 16
    assert [address for address, *_, learns in listing if learns] == [
        "classifier.3",
        "classifier.6",
    ]
    audit = surgery.audit(vgg16)
    assert sum(count for _, _, count, _ in listing) == audit.total == 134_268_738
    assert audit.trainable == 16_781_312 + 8_194
    text = (RESULTS / "vgg16_cats_and_dogs.md").read_text("utf-8")
    assert vgg16_cats_and_dogs.table() == text


def test_the_figures_of_alexnet():
    layers = alexnet_layers.layers(alexnet_layers.network())
    counted = [count for *_, count in layers if count]
    assert counted == [
        *(34_944, 614_656, 885_120, 1_327_488, 884_992),
        *(37_752_832, 16_781_312, 4_097_000),
    ]
    shapes = [shape for kind, shape, _ in layers if kind in ("Conv2d", "Linear")]
    assert shapes == [
        *([96, 55, 55], [256, 27, 27], [384, 13, 13], [384, 13, 13], [256, 13, 13]),
        *([4096], [4096], [1000]),
    ]
    assert alexnet_layers.table() == (RESULTS / "alexnet_layers.md").read_text("utf-8")


def test_the_misprint_is_the_count_of_a_smaller_kernel():
    with torch.device("meta"):
        printed, right = (nn.Conv2d(96, 256, size) for size in (3, 5))
    assert surgery.audit(printed).total == 221_440
    assert surgery.audit(right).total == 614_656
    assert "221,440" in alexnet_layers.MISPRINT
    assert "614,656" in alexnet_layers.MISPRINT
