"""Heads of a feature pyramid: each level's scores stand in one axis, behind what boxes are of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()
SCORES = ["scores.0", "scores.1"]


class Pyramid(nn.Module):
    """Two levels; a box is the expectation over bins, which a layer of one feature takes."""

    def __init__(self, classes: int = 9, bins: int = 6) -> None:
        super().__init__()
        self.kinds, self.bins = classes, bins
        self.trunk = nn.Conv2d(3, 16, 4, 4)
        self.down = nn.Conv2d(16, 16, 2, 2)
        self.sides = nn.ModuleList([nn.Conv2d(16, 4 * bins, 1) for _ in range(2)])
        self.scores = nn.ModuleList([nn.Conv2d(16, classes, 1) for _ in range(2)])
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.trunk(x)
        levels = [first, self.down(first)]
        boxes = [
            self.sides[i](level).view(len(x), 4, self.bins, -1) for i, level in enumerate(levels)
        ]
        kinds = [
            self.scores[i](level).view(len(x), self.kinds, -1) for i, level in enumerate(levels)
        ]
        bins = torch.cat(boxes, -1).transpose(1, 2).softmax(1)
        return torch.cat([self.expectation(bins).squeeze(1), torch.cat(kinds, -1).sigmoid()], 1)


class Joined(nn.Module):
    """Boxes and scores of every level are joined before the levels are."""

    def __init__(self, classes: int = 9) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 16, 4, 4)
        self.down = nn.Conv2d(16, 16, 2, 2)
        self.boxes = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(2)])
        self.scores = nn.ModuleList([nn.Conv2d(16, classes, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.trunk(x)
        levels = [first, self.down(first)]
        made = [torch.cat([self.boxes[i](f), self.scores[i](f)], 1) for i, f in enumerate(levels)]
        return torch.cat([each.flatten(2) for each in made], 2)


@pytest.mark.parametrize("kind", [Pyramid, Joined], ids=["decoded", "joined"])
@pytest.mark.parametrize("batch", [1, 2], ids=["one", "two"])
def test_the_classes_of_every_level_are_replaced_and_undone(
    kind: type[nn.Module], batch: int
) -> None:
    model = kind()
    images = torch.randn(batch, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old = model.eval()(images)
    found = surgery.find_heads(model, images, registry=NO_PLUGINS)
    made = {head.address: (head.num_classes, head.class_axis) for head in found}
    assert {address: made.get(address) for address in SCORES} == dict.fromkeys(SCORES, (9, 1))
    outcome = surgery.replace_head(
        model, 3, heads=SCORES, keep={0: 8}, example=images, registry=NO_PLUGINS
    )
    new = model(images)
    assert new.shape == (batch, 4 + 3, 20)
    torch.testing.assert_close(new[:, :4], old[:, :4])
    torch.testing.assert_close(new[:, 4], old[:, 12])
    outcome.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images), old)


@pytest.mark.parametrize("kind", [Pyramid, Joined], ids=["decoded", "joined"])
def test_without_a_name_the_caller_has_to_say_where_boxes_are_made_too(
    kind: type[nn.Module],
) -> None:
    images = torch.randn(1, 3, 16, 16)
    found = surgery.find_heads(kind(), images, registry=NO_PLUGINS)
    assert not any(head.corroborated for head in found)
    if kind is Joined:
        with pytest.raises(surgery.errors.AmbiguousHeadError, match=r"scores\.0"):
            surgery.replace_head(kind(), 3, example=images, registry=NO_PLUGINS)
