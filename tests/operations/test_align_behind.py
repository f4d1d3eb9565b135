"""Behind another stem or in front of another head: what is the same is proven, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.families.registry import Registry
from tests.operations.aligned import shaken

NOTHING = Registry.of()


def notes(donor: nn.Module, recipient: nn.Module, x: Tensor) -> tuple[str, ...]:
    """What a transplant says."""
    outcome = surgery.transplant(
        shaken(donor),
        recipient.eval(),
        match="graph",
        example=x,
        registry=NOTHING,
        min_coverage=0.2,
    )
    return tuple(outcome.plan.notes)


class Pointwise(nn.Module):
    """A layer on every pixel: a convolution, or a matrix with features last."""

    def __init__(self, last: bool, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8) if last else nn.Conv2d(3, 8, 1)
        self.head, self.last = nn.Linear(8, classes), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.permute(0, 2, 3, 1) if self.last else x)
        return self.head(torch.relu(x).mean((1, 2) if self.last else (2, 3)))


# Where there are as many pixels as features, sizes do not say which axis has the features.
@pytest.mark.parametrize("size", [6, 8])
@pytest.mark.parametrize("back", [False, True])
def test_a_layer_on_every_pixel_is_proven_in_front_of_another_head(size: int, back: bool):
    pair = [Pointwise(False, 4), Pointwise(True, 5)]
    donor, recipient = reversed(pair) if back else pair
    told = notes(donor, recipient, torch.zeros(2, 3, size, size))
    assert "in the middle (layer)" in told[0]
    same = donor.layer.weight.reshape(8, 3), recipient.layer.weight.reshape(8, 3)
    assert torch.equal(*same)
