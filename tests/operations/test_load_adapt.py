"""What ``on_mismatch="adapt"`` makes of tensors of another shape."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from surgery_plugins import vision_transformer
from torch import nn
from torchvision import models

import surgery
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.operations.names import remember

NOBODY = Registry.of()


class Net(nn.Module):
    """A convolution and a head."""

    def __init__(self, channels: int = 3, kernel: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.num_classes = classes
        self.stem = nn.Conv2d(channels, 4, kernel, padding=kernel // 2)
        self.body = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def adapt(model: nn.Module, source: object, **options: Any) -> surgery.Outcome:
    options = {"registry": NOBODY, "on_mismatch": "adapt", **options}
    return surgery.load_weights(model, source, **options)


def test_grey_images_get_the_answers_of_repeated_ones():
    source, model = Net(3), Net(1)
    adapt(model, source)
    grey = torch.rand(2, 1, 9, 9)
    expected = source(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model(grey), expected)


def test_channels_are_repeated_in_a_circle():
    source, model = Net(3), Net(6)
    adapt(model, source)
    assert torch.equal(model.stem.weight[:, :3], model.stem.weight[:, 3:])
    torch.testing.assert_close(model.stem.weight.sum(1), source.stem.weight.sum(1))


def test_only_the_first_layer_gets_other_channels():
    source, model = Net(), Net()
    model.body = nn.Conv2d(5, 6, 3)
    with pytest.raises(ArgumentError, match="nothing says how"):
        adapt(model, source)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (7, 3)])
def test_kernels_are_interpolated(old: int, new: int):
    source, model = Net(kernel=old), Net(kernel=new)
    with torch.no_grad():
        source.stem.weight.copy_(torch.ones(4, 3, old, old))
    adapt(model, source)
    # What a constant image makes stays: the sum over the kernel.
    torch.testing.assert_close(
        model.stem.weight.sum((2, 3)), source.stem.weight.sum((2, 3)), rtol=1e-5, atol=1e-5
    )


def test_rows_of_classes_by_name():
    source, model = Net(classes=3), Net(classes=4)
    remember(source, ["cat", "dog", "eel"])
    remember(model, ["dog", "ant", "cat", "bee"])
    before = copy.deepcopy(model.fc)
    outcome = adapt(model, source)
    for mine, theirs in (("weight", source.fc.weight), ("bias", source.fc.bias)):
        now, was = getattr(model.fc, mine), getattr(before, mine)
        assert torch.equal(now[0], theirs[1])
        assert torch.equal(now[2], theirs[0])
        assert torch.equal(now[1], was[1])
        assert torch.equal(now[3], was[3])
    assert any("2 rows by class name; ant, bee as they were" in n for n in outcome.plan.notes)


def test_rows_without_names_or_without_a_common_one():
    source, model = Net(classes=3), Net(classes=4)
    with pytest.raises(PlanError, match="source's classes have no names"):
        adapt(model, source)
    remember(source, ["cat", "dog", "eel"])
    with pytest.raises(PlanError, match="model's classes have no names"):
        adapt(model, source)
    remember(model, ["a", "b", "c", "d"])
    with pytest.raises(PlanError, match="no class of the model"):
        adapt(model, source)


def small_transformer(size: int) -> nn.Module:
    return models.VisionTransformer(size, 8, 2, 2, 16, 16, num_classes=5)


@pytest.mark.parametrize(("old", "new"), [(32, 48), (48, 32)])
def test_position_embeddings_with_the_class_token_apart(old: int, new: int):
    registry = Registry.of(vision_transformer.FAMILY)
    source, model, resized = (small_transformer(size) for size in (old, new, old))
    nn.init.normal_(source.encoder.pos_embedding)
    adapt(model, source, registry=registry)
    resized.load_state_dict(source.state_dict())
    surgery.adapt_input(resized, image_size=new, registry=registry)
    assert torch.equal(model.encoder.pos_embedding, resized.encoder.pos_embedding)
    images = torch.rand(1, 3, new, new)
    assert torch.equal(model.eval()(images), resized.eval()(images))


def test_positions_that_lie_on_no_grid():
    class Positions(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(1, count, 4))
            self.fc = nn.Linear(4, 2)

    with pytest.raises(ArgumentError, match="no square grid"):
        adapt(Positions(7), Positions(12))
