"""Where features are split and nothing says which part is the classes: what the error says."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import surgery
from surgery.errors import NoHeadError
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()
X = torch.zeros(4, 8)


class Distributed(nn.Module):
    """The expectation over eleven values, for each of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.atoms = 5, 11
        self.q = nn.Linear(8, 5 * 11)
        self.register_buffer("support", torch.linspace(-1, 1, 11))

    def forward(self, x: Tensor) -> Tensor:
        chances = self.q(x).view(-1, self.n, self.atoms).softmax(-1)
        return (chances * self.support).sum(-1)


class Centres(nn.Module):
    """The nearest of three centres of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.q = 5, nn.Linear(8, 15, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.q.weight)).view(-1, self.n, 3).amax(2)


class Boxed(nn.Module):
    """Three anchors, each with five numbers of a box beside the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.no, self.q = 5 + 5, nn.Linear(8, 3 * (5 + 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x).view(-1, 3, self.no)


class Chosen(nn.Module):
    """The winning class alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x).argmax(-1)


def fix_for(model: nn.Module) -> str:
    with pytest.raises(NoHeadError) as raised:
        surgery.replace_head(model, 7, example=X, registry=NO_PLUGINS)
    assert "attach" not in str(raised.value.fix)
    return str(raised.value.fix)


@pytest.mark.parametrize("build", [Distributed, Centres])
def test_with_the_number_that_is_named_the_classes_follow(build: type[nn.Module]) -> None:
    model = build()
    (number,) = re.findall(r"model\.num_classes = (\d+), if", fix_for(model))
    model.num_classes = int(number)  # type: ignore[assignment]
    surgery.replace_head(model, 7, example=X, registry=NO_PLUGINS)
    assert model(X).shape == (4, 7)


def test_of_several_parts_each_is_named_and_what_boxes_do() -> None:
    fix = fix_for(Boxed())
    assert fix.startswith("model.num_classes = 3 or 10, whichever part")
    assert "boxes" in fix
    assert fix.endswith("surgery.replace(model, {'q': module})")


def test_where_the_model_says_a_number_that_no_part_has_nothing_is_promised() -> None:
    model = Boxed()
    model.num_classes = 5  # type: ignore[assignment]
    assert fix_for(model).startswith("no part of the 30 features of q.weight is 5 classes")


def test_a_choice_has_no_axis_for_the_classes() -> None:
    assert "return the scores" in fix_for(Chosen())


def test_features_that_are_no_classes_can_have_a_head_attached() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
    with pytest.raises(NoHeadError, match="attach=True"):
        surgery.replace_head(model, 7, example=torch.zeros(1, 3, 8, 8), registry=NO_PLUGINS)
