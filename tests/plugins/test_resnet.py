from __future__ import annotations

import re

import pytest
import torch
import torchvision
from surgery_plugins import resnet
from torchvision.models import get_model_builder, list_models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from surgery.families.registry import Registry
from surgery.testing import check_family

FAMILY = resnet.FAMILY


def test_the_family_keeps_its_word_on_one_model_of_each_sort():
    names = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
    models = {name: get_model_builder(name) for name in names}
    assert check_family(FAMILY, models=models) == names


@pytest.mark.slow
def test_the_family_keeps_its_word():
    assert check_family(FAMILY) == tuple(FAMILY.catalog)


def test_the_catalog_is_all_that_torchvision_builds_from_the_class():
    builders = {name: get_model_builder(name) for name in list_models(torchvision.models)}
    there = {n for n, build in builders.items() if build.__module__ == "torchvision.models.resnet"}
    assert set(FAMILY.catalog) == there


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101_32x8d"])
def test_the_quantizable_variant_is_claimed_with_its_base(name: str):
    with torch.device("meta"):
        model = getattr(torchvision.models.quantization, name)()
    claim = Registry.of(FAMILY).find_claim(model)
    assert (claim.family, claim.exact) == (FAMILY, False)


def test_a_backbone_that_only_holds_its_layers_is_not_claimed():
    with torch.device("meta"):
        model = torchvision.models.segmentation.fcn_resnet50(weights_backbone=None)
    assert Registry.of(FAMILY).claim(model) is None
    assert Registry.of(FAMILY).claim(model.backbone) is None


@pytest.mark.parametrize(("block", "layer"), [(BasicBlock, "basic"), (Bottleneck, "bottleneck")])
def test_weights_in_the_names_of_transformers_give_the_same_output(block: type, layer: str):
    transformers = pytest.importorskip("transformers")
    depths = [1, 2, 1, 1]
    config = transformers.ResNetConfig(
        depths=depths,
        hidden_sizes=[block.expansion * width for width in (64, 128, 256, 512)],
        layer_type=layer,
        num_labels=7,
    )
    donor = transformers.ResNetForImageClassification(config).eval()
    with torch.device("meta"):
        model = ResNet(block, depths, num_classes=7).eval()

    renamed = {}
    for key, tensor in donor.state_dict().items():
        for pattern, replacement in FAMILY.renames["transformers"]:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    assert len(renamed) == len(donor.state_dict())
    model.load_state_dict(renamed, strict=True, assign=True)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(image), donor(image).logits, atol=1e-4)
