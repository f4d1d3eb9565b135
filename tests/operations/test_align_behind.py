"""Behind another stem or in front of another head: what is the same is proven, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.operations.aligned import said


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
    told = said(donor, recipient, torch.zeros(2, 3, size, size))
    assert "in the middle (layer)" in told[0]
    same = donor.layer.weight.reshape(8, 3), recipient.layer.weight.reshape(8, 3)
    assert torch.equal(*same)


# What no tensor and no arithmetic tells apart: which of the numbers go on, and in which order.
TAKEN: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "first or last": (lambda x: x[:, 0], lambda x: x[:, -1]),
    "other rows": (lambda x: x[:, 1:3], lambda x: x[:, 0:2]),
    "shuffled": (lambda x: x, lambda x: x.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)),
}


class Chosen(nn.Module):
    """A layer, what is taken of it, and a head."""

    def __init__(self, taken: Callable[[Tensor], Tensor], classes: int) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, classes)
        self.taken = taken

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.taken(torch.tanh(self.layer(x))))


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("back", [False, True])
def test_which_numbers_go_on_beyond_what_was_compared_is_said(name: str, back: bool):
    one, other = reversed(TAKEN[name]) if back else TAKEN[name]
    rows = torch.zeros(2, 5, 6)
    told = said(Chosen(one, 4), Chosen(other, 5), rows)
    assert any(note.startswith("not compared") for note in told)
    told = said(Chosen(one, 4), Chosen(one, 5), rows)
    assert not any(note.startswith("not compared") for note in told)


class Saturated(nn.Module):
    """A layer that decides between 0 and 1, without slopes, beside one that decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.dead = nn.Linear(6, 8), nn.Linear(6, 8)
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x) * 1e9)
        return self.head(self.layer(x) * gate + torch.sigmoid(self.dead(x) - 1e9))


def test_what_decides_without_slopes_is_told_from_what_decides_nothing():
    told = next(n for n in said(Saturated(), Saturated(), torch.zeros(5, 6)) if "graphs" in n)
    assert told.startswith("placed by the graphs alone")
    assert "dead.weight" in told
    assert "gate" not in told


def test_where_slopes_cannot_be_told_that_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("surgery.operations.proof.activations", lambda graph: 2**60)
    told = said(Saturated(), Saturated(), torch.zeros(5, 6))
    assert any("could not be told" in note for note in told)


class Squashed(Saturated):
    """The same, with one more operation that huge numbers hide."""

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(torch.tanh(self.gate(x) * 1e9) * 1e9)
        return self.head(self.layer(x) * gate + torch.sigmoid(self.dead(x) - 1e9))


def test_an_operation_that_saturation_hides_is_named():
    assert any("tanh" in note for note in said(Saturated(), Squashed(), torch.zeros(5, 6)))
