"""Two models that take one input in two forms: the example says how one becomes the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import ArgumentError, PlanError, RecordError
from surgery.families.registry import Registry
from tests.operations.aligned import shaken

NOTHING = Registry.of()


class Taking(nn.Module):
    """A small network behind something that is done to the input first."""

    def __init__(self, taken: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
        self.taken = taken

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.layers(self.taken(*args, **kwargs))


def taken(x: Tensor) -> Tensor:
    return x


# What the recipient does to its input, and how it is made of the donor's.
FORMS: Mapping[str, tuple[Callable[..., Tensor], Callable[[Tensor], Any]]] = {
    "features last": (lambda x: x.permute(0, 3, 1, 2), lambda x: x.permute(0, 2, 3, 1)),
    "flat": (lambda x: x.view(-1, 3, 5, 5), lambda x: x.flatten(1)),
    "turned around": (lambda x: x.flip(1), lambda x: x.flip(1)),
    "by name": (lambda *, given: given["x"], lambda x: {"given": {"x": x}}),
}


def brought(donor: nn.Module, recipient: nn.Module, **examples: Any) -> tuple[str, ...]:
    outcome = surgery.transplant(
        donor, recipient, match="graph", registry=NOTHING, min_coverage=0.2, **examples
    )
    return tuple(outcome.plan.notes)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("back", [False, True])
def test_one_input_in_two_forms_proves_the_whole(name: str, back: bool):
    use, form = FORMS[name]
    x = torch.randn(2, 3, 5, 5)
    sides = [(shaken(Taking(taken)), x), (shaken(Taking(use)), form(x))]
    (donor, example), (recipient, other) = reversed(sides) if back else sides
    notes = brought(donor, recipient, example=example, recipient_example=other)
    assert notes[0].startswith("proven")
    assert not any(note.startswith(("compared from", "placed", "not ")) for note in notes)
    states = [each.state_dict() for each in (donor, recipient)]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_a_form_that_is_not_what_the_recipient_takes_is_refused():
    x = torch.randn(2, 3, 5, 5)
    donor, recipient = shaken(Taking(taken)), shaken(Taking(lambda x: x.flip(1)))
    with pytest.raises(PlanError, match="computes something else"):
        brought(donor, recipient, example=x, recipient_example=x)
    wrong = x.permute(0, 3, 2, 1)
    recipient = shaken(Taking(lambda x: x.permute(0, 3, 1, 2)))
    with pytest.raises(PlanError, match="computes something else"):
        brought(donor, recipient, example=x, recipient_example=wrong)
    with pytest.raises(RecordError):
        brought(donor, recipient, example=x, recipient_example=x[:, 0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_numbers_the_comparison_begins_behind_the_input(device: str):
    donor, recipient = shaken(Taking(taken)), shaken(Taking(lambda x: x.permute(0, 3, 1, 2)))
    one, other = (torch.zeros(shape, device=device) for shape in ((2, 3, 5, 5), (2, 5, 5, 3)))
    notes = brought(donor, recipient, example=one, recipient_example=other)
    assert any(note.startswith("compared from there on") for note in notes)


def test_the_donor_finds_its_own_example():
    x = torch.randn(2, 6)
    donor, recipient = (shaken(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))) for _ in range(2))
    assert brought(donor, recipient, recipient_example=x)[0].startswith("proven")
    found = surgery.align(donor, recipient, recipient_example=x, registry=NOTHING)
    assert found.rename == {name: name for name in donor.state_dict()}


def test_by_address_no_example_is_taken():
    model = nn.Linear(6, 8)
    with pytest.raises(ArgumentError, match="nothing runs") as caught:
        surgery.transplant(model, nn.Linear(6, 8), recipient_example=torch.zeros(1, 6))
    assert "match='graph'" in str(caught.value)
