"""One architecture in two libraries: torchvision, timm, transformers, efficientnet-pytorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import surgery
from surgery import tree
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import contents

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
NOTHING = Registry.of()


def tv(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **options)


def ti(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **options)


def tf(name: str, **options: Any) -> Callable[[], nn.Module]:
    kind = getattr(transformers, name)
    return lambda: kind(kind.config_class(num_labels=10, **options))


# Too large to run in a test: laid one over the other on meta.
WHOLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int]] = {
    "vgg": (tv("vgg11_bn"), ti("vgg11_bn"), 224),
    "densenet": (tv("densenet121"), ti("densenet121"), 64),
    "inception": (tv("inception_v3", init_weights=False), ti("inception_v3"), 299),
    "efficientnet": (tv("efficientnet_b0"), ti("efficientnet_b0"), 64),
    "mnasnet": (tv("mnasnet1_0"), ti("mnasnet_100"), 64),
    "convnext": (tv("convnext_tiny"), ti("convnext_tiny"), 64),
    "swin": (tv("swin_t"), ti("swin_tiny_patch4_window7_224"), 224),
    "swin v2": (tv("swin_v2_t"), ti("swinv2_tiny_window8_256"), 256),
    "vit": (tv("vit_b_16"), ti("vit_base_patch16_224"), 224),
    "beit": (
        tf("BeitForImageClassification", use_relative_position_bias=True),
        ti("beit_base_patch16_224", num_classes=10),
        224,
    ),
    "convnext v2": (
        tf("ConvNextV2ForImageClassification"),
        ti("convnextv2_tiny", num_classes=10),
        64,
    ),
    "poolformer": (
        tf("PoolFormerForImageClassification"),
        ti("poolformer_s12", num_classes=10),
        224,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_has_its_twin(name: str):
    *makers, size = WHOLE[name]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (make() for make in makers)
    x = torch.empty(1, 3, size, size, device="meta")
    found = surgery.align(one, other, example=x, registry=NOTHING)
    assert found.complete
    assert not found.ambiguous
    assert not found.recipient_only
    assert {each.reason for each in found.donor_only} <= {"takes no part in the forward pass"}


_VIT = {"hidden_dim": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 3}
SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int]] = {
    "resnet": (tv("resnet18"), ti("resnet18"), 32),
    "mobilenet v3": (tv("mobilenet_v3_small"), ti("mobilenetv3_small_100"), 32),
    "regnet": (tv("regnet_y_400mf"), ti("regnety_004"), 32),
    "vit": (
        lambda: torchvision.models.VisionTransformer(
            image_size=16, patch_size=8, num_classes=10, **_VIT
        ),
        ti(
            "vit_base_patch16_224",
            img_size=16,
            patch_size=8,
            embed_dim=24,
            depth=2,
            num_heads=3,
            mlp_ratio=2,
            num_classes=10,
        ),
        16,
    ),
    "vit of transformers": (
        tf(
            "ViTForImageClassification",
            image_size=16,
            patch_size=8,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
        ),
        lambda: torchvision.models.VisionTransformer(
            image_size=16, patch_size=8, num_classes=10, **_VIT
        ),
        16,
    ),
}


def answer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(x)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_weights_go_from_library_to_library_and_back(name: str, back: bool):
    one, other, size = SMALL[name]
    donor, recipient = (make() for make in ((other, one) if back else (one, other)))
    for entry in tree.index(donor).of_kind("buffer"):
        if entry.tensor.is_floating_point():
            entry.tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, size, size)
    before = contents(recipient)
    outcome = surgery.transplant(
        donor, recipient, match="graph", differences="set", example=x, registry=NOTHING
    )
    assert torch.allclose(answer(donor, x), answer(recipient, x), rtol=1e-4, atol=1e-5)
    outcome.undo()
    assert contents(recipient) == before


def test_padding_to_one_side_is_refused_and_named():
    efficientnet = pytest.importorskip("efficientnet_pytorch")
    donor = efficientnet.EfficientNet.from_name("efficientnet-b0")
    recipient = torchvision.models.efficientnet_b0(weights=None)
    before = contents(recipient)
    with pytest.raises(PlanError) as caught:
        surgery.transplant(
            donor, recipient, match="graph", example=torch.zeros(1, 3, 32, 32), registry=NOTHING
        )
    assert "padding" in str(caught.value)
    assert "constant_pad_nd(pad=(0, 1, 0, 1)" in str(caught.value)
    assert contents(recipient) == before


def test_text_models_are_aligned_too():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    make = tf("BertModel", intermediate_size=64, vocab_size=30, **sizes)
    donor, recipient = make(), make()
    ids = torch.zeros(1, 6, dtype=torch.int64)
    outcome = surgery.transplant(donor, recipient, match="graph", example=ids, registry=NOTHING)
    assert outcome.plan.steps
    with torch.no_grad():
        one, other = (model.eval()(ids + 3).pooler_output for model in (donor, recipient))
    assert torch.allclose(one, other, atol=1e-6)
