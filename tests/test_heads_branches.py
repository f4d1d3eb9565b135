"""A trunk that ends in branches is no model with several heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import AmbiguousHeadError, UncorroboratedWarning
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()
Step = Callable[[int], nn.Module]


class Branches(nn.Module):
    """Two layers whose results, after a step of their own, are added or joined."""

    def __init__(self, each: Step, after: Step, *, join: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 6), each(6))
        self.second = nn.Sequential(nn.Linear(8, 6), each(6))
        self.after, self.join = after(12 if join else 6), join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x), self.second(x)]
        joined: torch.Tensor = self.after(torch.cat(parts, 1) if self.join else sum(parts))
        return joined


def nothing(size: int) -> nn.Module:
    return nn.Identity()


SHAPING: list[Step] = [
    nn.BatchNorm1d,
    nn.LayerNorm,
    *(lambda size, make=make: make() for make in (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish)),
    lambda size: nn.ReLU(inplace=True),
    lambda size: nn.LeakyReLU(0.1),
]


@pytest.mark.parametrize("step", SHAPING)
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_branches_of_a_trunk_are_no_heads(step: Step, join: bool, last: bool) -> None:
    model = Branches(nothing if last else step, step if last else nothing, join=join)
    x = torch.zeros(3, 8)
    with pytest.raises(AmbiguousHeadError, match=r"trunk with several branches"):
        surgery.replace_head(model, 7, example=x, registry=NO_PLUGINS)
    both = ["first.0", "second.0"]
    if not join:
        outcome = surgery.replace_head(model, 7, heads=both, example=x, registry=NO_PLUGINS)
        assert outcome.model(x).shape == (3, 7)


@pytest.mark.parametrize(
    "step",
    [nothing, lambda size: nn.Softmax(1), lambda size: nn.LogSoftmax(1), lambda size: nn.Sigmoid()],
)
def test_heads_whose_answers_are_added_are_heads(step: Step) -> None:
    for model in (Branches(step, nothing, join=False), Branches(nothing, step, join=False)):
        x = torch.zeros(3, 8)
        with pytest.warns(UncorroboratedWarning):
            outcome = surgery.replace_head(model, 7, example=x, registry=NO_PLUGINS)
        assert outcome.model(x).shape == (3, 7)


def test_a_residual_trunk_without_its_head() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=0)
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(AmbiguousHeadError, match=r"layer4\.0\.conv2"):
        surgery.replace_head(model, 7, example=x, registry=NO_PLUGINS)
