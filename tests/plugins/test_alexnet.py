from __future__ import annotations

import torch
import torchvision
from surgery_plugins import alexnet
from torch import nn

from surgery.families.applied import example_for
from surgery.families.registry import Registry
from surgery.testing import check_family

FAMILY = alexnet.FAMILY


def test_the_family_keeps_its_word():
    assert check_family(FAMILY) == ("alexnet",)


def test_it_claims_the_model_and_what_is_made_from_it():
    class Mine(torchvision.models.AlexNet):
        pass

    registry = Registry.of(FAMILY)
    with torch.device("meta"):
        assert registry.claim(Mine()) is FAMILY
        assert registry.claim(torchvision.models.vgg11()) is None


def test_the_example_follows_a_changed_input_layer():
    with torch.device("meta"):
        model = torchvision.models.alexnet()
        model.features[0] = nn.Conv2d(1, 64, 11, stride=4, padding=2)
    (image,) = example_for(FAMILY, model).args
    assert image.shape == (2, 1, 224, 224)
    assert model(image).shape == (2, 1000)
