"""Grey given as grey answers as grey given three times, in every family of torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surgery_plugins import video
from torch import Tensor, nn
from torchvision import models

import surgery
from surgery import tree
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.test_heads_torchvision import (
    CLASSIFICATION,
    NO_PLUGINS,
    QUANTIZABLE,
    SEGMENTATION,
    VIDEO,
    some,
)

# The smallest images that a family takes; 64 for all others.
SIDES = {"inception": 96, "quantized_inception": 96, "maxvit": 224, "s3d": 224}
FRAMES = {"s3d": 16, "mvit": 16}


def of(table: dict[str, int], name: str, default: int) -> int:
    return next((value for start, value in table.items() if name.startswith(start)), default)


def lively(model: nn.Module) -> nn.Module:
    """A model whose answers depend on what it is shown, as a trained one's do."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** 0.5)
    # In double precision, so that rounding stays rounding after fifty layers.
    return model.double().eval()


def build(name: str) -> tuple[nn.Module, Tensor]:
    settings: dict[str, Any] = {}
    if "googlenet" in name or "inception" in name:
        settings["init_weights"] = False
    if name in QUANTIZABLE:
        settings["quantize"] = False
    if name in SEGMENTATION:
        settings["weights_backbone"] = None
    if name.startswith("vit"):
        settings["image_size"] = 56 if name.endswith("14") else 64
    torch.manual_seed(0)
    model = lively(models.get_model(name, num_classes=10, **settings))
    if name.startswith("mvit"):
        surgery.adapt_input(model, image_size=64, registry=Registry.of(video.MVIT))
    side = settings.get("image_size", of(SIDES, name, 64))
    frames = (of(FRAMES, name, 4),) if name in VIDEO else ()
    return model, torch.rand(1, 1, *frames, side, side, dtype=torch.float64)


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    return found["out"] if isinstance(found, dict) else found


@pytest.mark.parametrize("name", some([*CLASSIFICATION, *QUANTIZABLE, *SEGMENTATION, *VIDEO]))
def test_grey_answers_as_it_did(name: str) -> None:
    model, grey = build(name)
    thrice = grey.expand(1, 3, *grey.shape[2:])
    expected = answers(model, thrice)
    assert not torch.allclose(expected, answers(model, torch.zeros_like(thrice)), rtol=1e-2)
    tensors = {a: e.tensor for e in tree.index(model).tensors.values() for a in e.addresses}
    outcome = surgery.adapt_input(
        model, in_channels=1, example=torch.cat([thrice, thrice]), registry=NO_PLUGINS
    )
    found = answers(model, grey)
    scale = expected.abs().max()
    # The deepest networks make far more of the last bit of an input than others do.
    noise = (answers(model, grey * (1 + 4e-16)) - found).abs().max() / scale
    close = max(1e-6, 30 * noise.item())
    assert close < 0.01
    torch.testing.assert_close(found / scale, expected / scale, atol=close, rtol=1e-6)
    touched = [step.address for step in outcome.plan.steps]
    stem = tree.split(touched[0])[0]
    assert touched == [f"{stem}.weight", f"{stem}.in_channels"]
    same = [address for address, tensor in tensors.items() if tree.get(model, address) is tensor]
    assert same == [address for address in tensors if address != touched[0]]
    outcome.undo()
    assert all(tree.get(model, address) is tensor for address, tensor in tensors.items())


def test_a_transform_by_channel_inside_the_model_is_refused() -> None:
    with torch.device("meta"):
        model = models.inception_v3(init_weights=False, transform_input=True)
    with pytest.raises(PlanError, match="one by one") as caught:
        surgery.adapt_input(model, in_channels=1, registry=NO_PLUGINS)
    assert "mean=" in str(caught.value)


def test_a_transform_can_be_folded_into_the_stem() -> None:
    """What the error of the case above tells to do, in full."""
    model, _ = build("inception_v3")
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    model.transform_input = True
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
    given = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = answers(model, given)
    model.transform_input = False
    surgery.adapt_input(
        model,
        mean=(0.5, mean.tolist()),
        std=(0.5, std.tolist()),
        example=torch.cat([image, image]),
        registry=NO_PLUGINS,
    )
    scale = expected.abs().max()
    torch.testing.assert_close(
        answers(model, given) / scale, expected / scale, atol=1e-6, rtol=1e-6
    )


def test_optical_flow_takes_two_images_through_layers_they_share() -> None:
    with torch.device("meta"):
        model = models.optical_flow.raft_small()
        images = (torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))
        example = surgery.Example(images, {"num_flow_updates": 2})
        surgery.adapt_input(model, in_channels=1, example=example, registry=NO_PLUGINS)
    assert model.feature_encoder.convnormrelu[0].in_channels == 1
    assert model.context_encoder.convnormrelu[0].in_channels == 1


def detector() -> tuple[nn.Module, Any]:
    model = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return model.eval(), ([torch.rand(3, 64, 64)],)


def test_the_means_that_a_detector_holds_follow() -> None:
    model, example = detector()
    outcome = surgery.adapt_input(
        model, in_channels=4, example=surgery.Example(example), registry=Registry.of()
    )
    assert len(model.transform.image_mean) == len(model.transform.image_std) == 4
    assert "boxes" in model([torch.rand(4, 64, 64)])[0]
    outcome.undo()
    assert "boxes" in model([torch.rand(3, 64, 64)])[0]


def test_means_of_its_own_for_every_channel_keep_a_detector_from_grey() -> None:
    model, example = detector()
    model.transform.image_mean = [0.485, 0.456, 0.406]
    with pytest.raises(PlanError, match="values of its own"):
        surgery.adapt_input(
            model, in_channels=1, example=surgery.Example(example), registry=Registry.of()
        )
