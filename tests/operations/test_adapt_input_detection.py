"""Detectors take a list of images and normalise them themselves: both follow the channels."""

from __future__ import annotations

import pytest
import torch
from surgery_plugins.detection import surgery_families
from torch import nn
from torchvision.models import detection

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

REGISTRY = Registry.of(*surgery_families())


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    make = getattr(detection, name)
    return make(weights=None, weights_backbone=None, num_classes=3).eval()


@torch.no_grad()
def test_a_grey_image_gives_what_three_equal_channels_gave():
    model, grey = detector("ssdlite320_mobilenet_v3_large"), torch.rand(1, 96, 128)
    before = model([grey.expand(3, -1, -1)])[0]
    outcome = surgery.adapt_input(model, in_channels=1, registry=REGISTRY)
    after = model([grey])[0]
    assert len(before["boxes"])
    torch.testing.assert_close(after, before)
    outcome.undo()
    torch.testing.assert_close(model([grey.expand(3, -1, -1)])[0], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"]
)
def test_images_get_a_fourth_channel(name: str):
    model = detector(name)
    surgery.adapt_input(model, in_channels=4, registry=REGISTRY)
    assert model.transform.image_mean == [0.485, 0.456, 0.406, 0.485]
    with torch.no_grad():
        assert set(model([torch.rand(4, 64, 64)])[0]) >= {"boxes", "scores", "labels"}
    model.train()
    target = {"boxes": torch.tensor([[1.0, 1.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(4, 64, 64)], [target])
    assert all(loss.isfinite() for loss in losses.values())


def test_a_mean_for_each_colour_is_no_mean_for_grey():
    model = detector("fasterrcnn_mobilenet_v3_large_320_fpn")
    with pytest.raises(PlanError, match="normalises 3 channels"):
        surgery.adapt_input(model, in_channels=1, registry=REGISTRY)
    assert model.transform.image_mean == [0.485, 0.456, 0.406]
