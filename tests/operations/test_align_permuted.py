"""Features that are moved between a stem of one model alone and what both have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import shaken

# Products of what lies otherwise in memory are made of other operators, by whether slopes go back.
MOVED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "permuted": lambda x: x.permute(0, 2, 3, 1),
    "copied": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "one row": lambda x: x.flatten(2).transpose(1, 2),
}


class Behind(nn.Module):
    """A stem, features that are moved, and layers that all of its kind have."""

    def __init__(self, channels: int, moved: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.moved = moved

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.moved(torch.tanh(self.stem(x))))))


def brought(donor: nn.Module, recipient: nn.Module) -> list[str]:
    outcome = surgery.transplant(
        donor,
        recipient,
        match="graph",
        example=torch.zeros(2, 3, 8, 8),
        recipient_example=torch.zeros(2, 1, 8, 8),
        registry=Registry.of(),
        min_coverage=0.2,
    )
    return list(outcome.plan.notes)


@pytest.mark.parametrize(("one", "other"), [*itertools.product(MOVED, repeat=2)])
@pytest.mark.parametrize("frozen", [None, "donor", "recipient"])
def test_what_is_behind_another_stem_is_proven(one: str, other: str, frozen: str | None):
    donor, recipient = shaken(Behind(3, MOVED[one])), shaken(Behind(1, MOVED[other]))
    for model, name in ((donor, "donor"), (recipient, "recipient")):
        model.requires_grad_(name != frozen)
    notes = brought(donor, recipient)
    assert notes[0].startswith("proven")
    assert any(note.startswith("compared from there on") for note in notes)
    assert not any("could not be told" in note for note in notes)
    assert torch.equal(donor.layer.weight, recipient.layer.weight)
    flags = {p.requires_grad for p in (*donor.parameters(), *recipient.parameters())}
    assert flags == ({True} if frozen is None else {True, False})


@pytest.mark.parametrize("back", [False, True])
def test_features_in_another_order_are_refused_both_ways(back: bool):
    straight, turned = MOVED["permuted"], (lambda x: x.permute(0, 3, 2, 1))
    ways = (turned, straight) if back else (straight, turned)
    donor, recipient = shaken(Behind(3, ways[0])), shaken(Behind(1, ways[1]))
    before = recipient.layer.weight.detach().clone()
    with pytest.raises(PlanError, match="computes something else"):
        brought(donor, recipient)
    assert torch.equal(recipient.layer.weight, before)


class Rows(nn.Module):
    """The same behind a stem that is a matrix, on images with features last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(torch.tanh(self.stem(x)))))


# Where there are as many pixels as features, sizes do not say which axis has the features.
@pytest.mark.parametrize("size", [6, 8])
@pytest.mark.parametrize("back", [False, True])
def test_a_convolution_and_a_matrix_may_stand_in_front(size: int, back: bool):
    one = shaken(Behind(3, MOVED["permuted"])), torch.zeros(2, 3, size + 2, size + 2)
    other = shaken(Rows()), torch.zeros(2, size, size, 5)
    (donor, example), (recipient, taken) = (other, one) if back else (one, other)
    outcome = surgery.transplant(
        donor,
        recipient,
        match="graph",
        example=example,
        recipient_example=taken,
        registry=Registry.of(),
        min_coverage=0.2,
    )
    assert outcome.plan.notes[0].startswith("proven")
    assert torch.equal(donor.layer.weight, recipient.layer.weight)
