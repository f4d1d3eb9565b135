"""Heads that do without each other, while the code around them has one number for both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.operations.state import differences, state_of

NO_PLUGINS = Registry.of()
X = torch.zeros(2, 8)


class Twice(nn.Module):
    """Two answers, both given their shape by one number, under a name known or unknown."""

    def __init__(self, name: str, third: int = 4) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, 5)
        self.trunk = nn.Linear(8, 16)
        self.many, self.one, self.other = nn.Linear(16, 5), nn.Linear(16, 5), nn.Linear(16, third)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, count = self.trunk(x).relu(), getattr(self, self.name)
        return {
            "many": self.many(features).view(len(x), count, 1),
            "one": self.one(features).view(len(x), count, 1),
            "other": self.other(features),
        }


@pytest.mark.parametrize("name", ["num_classes", "kinds"])
def test_one_number_follows_two_heads(name: str) -> None:
    model = Twice(name)
    before = state_of(model)
    outcome = surgery.replace_head(model, 3, heads=["many", "one"], example=X, registry=NO_PLUGINS)
    assert getattr(model, name) == 3
    assert {k: tuple(v.shape) for k, v in model(X).items()} == {
        "many": (2, 3, 1),
        "one": (2, 3, 1),
        "other": (2, 4),
    }
    outcome.undo()
    assert not differences(before, state_of(model))


def test_a_head_with_another_number_is_still_tried_with_one_of_its_own() -> None:
    wanted = ["many", "one", "other"]
    plan = surgery.replace_head(
        Twice("kinds"), 3, heads=wanted, example=X, dry_run=True, registry=NO_PLUGINS
    ).plan
    assert plan.probes["many"] == plan.probes["one"] != plan.probes["other"]


@pytest.mark.parametrize("heads", [{"many": 3, "one": 7}, {"many": 3}], ids=["unlike", "one"])
def test_heads_that_the_number_holds_together_part_with_a_refusal(heads: dict[str, int]) -> None:
    model = Twice("kinds")
    before = state_of(model)
    with pytest.raises(PlanError, match="no longer runs"):
        surgery.replace_head(model, heads=heads, example=X, registry=NO_PLUGINS)
    assert not differences(before, state_of(model))
