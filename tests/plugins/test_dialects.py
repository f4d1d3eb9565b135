"""Checkpoint dialects: renamed by a family's rules, the weights of another implementation work."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
import torchvision
from surgery_plugins import densenet, swin, vision_transformer
from torch import Tensor
from torchvision.models.densenet import DenseNet, _load_state_dict
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from surgery.families.family import Rules


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    result = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = tensor
    assert len(result) == len(state)
    return result


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_the_names_of_2017_that_torchvisions_own_densenet_files_still_hold():
    made = DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, num_classes=3)
    state = made.state_dict()
    inner = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    legacy = {inner.sub(r"\1.\2.", key): tensor.clone() for key, tensor in state.items()}
    assert not same(legacy, state)

    class File:
        def get_state_dict(self, **options: object) -> dict[str, Tensor]:
            return {key: legacy[key] for key in legacy if not key.endswith("num_batches_tracked")}

    other = DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, num_classes=3)
    _load_state_dict(other, File(), progress=False)
    assert same(other.state_dict(), state), "torchvision reads these names as the same weights"
    assert same(renamed(legacy, densenet.FAMILY.renames["torchvision legacy"]), state)


def test_the_names_of_vision_transformers_before_the_mlp_was_numbered():
    made = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)
    state = dict(made.state_dict())
    old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    legacy = {
        re.sub(r"\.mlp\.[03]\.", lambda match: old[match[0]], key): tensor.clone()
        for key, tensor in state.items()
    }
    assert not same(legacy, state)
    other = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)
    other.load_state_dict(legacy)
    assert same(other.state_dict(), state), "torchvision reads these names as the same weights"
    rules = vision_transformer.FAMILY.renames["torchvision legacy"]
    assert same(renamed(legacy, rules), state)


def test_vision_transformers_of_timm_give_the_same_output():
    timm = pytest.importorskip("timm.models.vision_transformer")
    donor = timm.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=7
    )
    model = VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=7)
    rules = vision_transformer.FAMILY.renames["timm"]
    model.load_state_dict(renamed(donor.state_dict(), rules), strict=True)
    answers_alike(model, donor, torch.randn(2, 3, 32, 32))


def test_swin_transformers_of_timm_give_the_same_output():
    timm = pytest.importorskip("timm.models.swin_transformer")
    donor = timm.SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=2,
        embed_dim=8,
        depths=(1, 2, 1, 1),
        num_heads=(2, 2, 2, 2),
        num_classes=7,
    )
    model = SwinTransformer([4, 4], 8, [1, 2, 1, 1], [2, 2, 2, 2], [2, 2], num_classes=7)
    state = renamed(donor.state_dict(), swin.FAMILY.renames["timm"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert {key.rpartition(".")[2] for key in missing} == {"relative_position_index"}
    assert unexpected == []
    answers_alike(model, donor, torch.randn(2, 3, 64, 64))


def answers_alike(model: torch.nn.Module, donor: torch.nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        torch.nn.init.normal_(donor.get_classifier().weight)
        head = model.heads.head if isinstance(model, VisionTransformer) else model.head
        head.load_state_dict(donor.get_classifier().state_dict())
        found, wanted = model.eval()(image), donor.eval()(image)
    assert wanted.std() > 0.1
    assert torch.allclose(found, wanted, atol=1e-4)


def test_timm_names_the_layers_of_densenet_and_inception_as_torchvision_does():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        for name, model in (
            ("densenet121", torchvision.models.densenet121()),
            ("inception_v3", torchvision.models.inception_v3(init_weights=False)),
        ):
            aside = {key for key in model.state_dict() if key.startswith("AuxLogits.")}
            keys = set(timm.create_model(name).state_dict())
            assert keys | aside == set(model.state_dict())
