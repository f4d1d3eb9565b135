"""RegNet: the weights of another implementation give the same output under our names."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from surgery_plugins import regnet


def renamed(key: str) -> str:
    for pattern, replacement in regnet.FAMILY.renames["timm"]:
        key = re.sub(pattern, replacement, key)
    return key


def test_regnets_of_timm_give_the_same_output():
    timm = pytest.importorskip("timm")
    donor = timm.create_model("regnety_004", num_classes=7).eval()
    model = torchvision.models.regnet_y_400mf(num_classes=7).eval()
    state = {renamed(key): tensor for key, tensor in donor.state_dict().items()}
    model.load_state_dict(state, strict=True)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.nn.init.normal_(donor.get_classifier().weight)
        model.fc.load_state_dict(donor.get_classifier().state_dict())
        found, wanted = model(image), donor(image)
    assert wanted.std() > 0.1
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", ["x", "y"])
def test_every_name_of_the_deepest_models_has_its_place(kind: str):
    timm = pytest.importorskip("timm")
    ours = getattr(torchvision.models, f"regnet_{kind}_3_2gf")().state_dict()
    with torch.device("meta"):
        theirs = timm.create_model(f"regnet{kind}_032").state_dict()
    assert {renamed(key): tensor.shape for key, tensor in theirs.items()} == {
        key: tensor.shape for key, tensor in ours.items()
    }
