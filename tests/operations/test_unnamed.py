"""A number of classes is found by what it does, whatever it is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

NONE = Registry.of()


class Allocates(nn.Module):
    """Logits written into a tensor of ``ntoken`` columns; two other fives mean something else."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.depth, self.ntoken, self.heads_up = 5, classes, 5
        self.trunk, self.fc = nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], self.ntoken)
        features = x
        for _ in range(self.depth):
            features = self.trunk(features).relu()
        out[:] = self.fc(features)
        return out


class Mixture(Allocates):
    """Two softmaxes over ``ntoken`` classes, which the code reshapes by."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.prior = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(x).view(-1, 1, self.ntoken).softmax(-1)
        return (self.prior(x).softmax(-1)[:, :1, None] * logits).sum(1)


@pytest.mark.parametrize("build", [Allocates, Mixture])
def test_the_number_that_makes_it_run_follows_and_the_others_stay(build: type[nn.Module]) -> None:
    model = build()
    x = torch.zeros(2, 8)
    outcome = surgery.replace_head(model, 7, heads="fc", example=x, registry=NONE)
    assert model(x).shape == (2, 7)
    assert (model.ntoken, model.depth, model.heads_up) == (7, 5, 5)
    notes = outcome.plan.notes
    assert any("ntoken is a number of classes" in note for note in notes)
    assert any(note.startswith("depth, heads_up are 5 as well and stay") for note in notes)
    outcome.undo()
    assert model.ntoken == 5
    assert model(x).shape == (2, 5)


class Counts(nn.Module):
    """Its loss reshapes by ``nc``, which forward never reads."""

    def __init__(self, classes: int = 23) -> None:
        super().__init__()
        self.nc = classes
        self.fc = nn.Linear(classes, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_number_that_only_a_loss_reads_is_named_and_those_of_the_layer_are_not() -> None:
    model, x = Counts(), torch.zeros(2, 23)
    given = {"heads": "fc", "example": x, "registry": NONE}
    notes = surgery.replace_head(model, 7, **given, dry_run=True).plan.notes
    named = [note for note in notes if "as well and stay" in note]
    assert named == [
        "nc is 23 as well and stays, as forward runs with it: set what counts classes, should a "
        "loss read it"
    ]
    assert (model.nc, model.fc.in_features) == (23, 23)
    # As many classes as before: nothing has to follow.
    notes = surgery.replace_head(model, 23, **given, dry_run=True).plan.notes
    assert not any("as well and stay" in note for note in notes)


class Criterion(nn.Module):
    """Reshapes by a number of its own, and never runs in forward."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.kinds = kinds


class Beside(Counts):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = Criterion(23)


@pytest.mark.xfail(strict=True, reason="numbers are looked for above a head, and not beside it")
def test_a_number_beside_a_head_that_only_a_loss_reads_is_named() -> None:
    plan = surgery.replace_head(
        Beside(), 7, heads="fc", example=torch.zeros(2, 23), registry=NONE, dry_run=True
    ).plan
    assert any("criterion.kinds" in str(each) for each in (*plan.notes, *plan.steps))


class Constant(Allocates):
    """A width that stands in the code."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 5)
        out[:] = self.fc(x)
        return out


def test_where_no_number_helps_the_first_reason_is_given_and_nothing_touched() -> None:
    model = Constant()
    before = dict(vars(model))
    with pytest.raises(PlanError, match="no longer runs"):
        surgery.replace_head(model, 7, heads="fc", example=torch.zeros(2, 8), registry=NONE)
    assert dict(vars(model)) == before
