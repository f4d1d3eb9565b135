"""What adapt_input refuses, and that nothing has moved then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from surgery.errors import ArgumentError, PlanError, WrappedModelError
from tests.operations.adapting import conv, image, refused


class Twice(nn.Module):
    """The first layer again, further on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu()).mean((2, 3))


class ByNumber(nn.Module):
    """Takes the channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x[:, 0] * 2, x[:, 1], x[:, 2] / 2], 1)
        return self.conv(x).mean((2, 3))


class Residual(nn.Module):
    """Gives a picture back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Averaged(nn.Module):
    """Mixes the channels before any layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mean(1, keepdim=True)).mean((2, 3))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).mean(1)


class Computed(nn.Module):
    """A weight that is scaled before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return functional.conv2d(x, weight).mean((2, 3))


REFUSED = {
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), "groups"),
    "used twice": (Twice, "further on"),
    "by number": (ByNumber, "one by one"),
    "the picture comes back": (Residual, "no longer runs"),
    "mixed before": (Averaged, "traced|no layer"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "no layer|computed"),
    "scaled weight": (Computed, "computed"),
    "no layer": (nn.ReLU, "no layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_is_refused(name: str) -> None:
    build, match = REFUSED[name]
    refused(build(), PlanError, match, example=image(), in_channels=2)


def test_tokens_have_no_channels() -> None:
    refused(Embedded(), PlanError, "no layer", in_channels=1, example=torch.zeros(2, 3).long())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"in_channels": 0},
        {"in_channels": -1},
        {"in_channels": True},
        {"in_channels": 1.0},
        {"in_channels": "1"},
        {"in_channels": 1, "how": "mean"},
        {"in_channels": 1, "how": nn.Conv2d},
        {"in_channels": 1, "mean": 0.5},
        {"in_channels": 1, "mean": ([0.1, 0.2], 0.5)},
        {"in_channels": 1, "std": (0.1, 0.0)},
        {"in_channels": 1, "std": (0.1, float("nan"))},
        {"in_channels": 1, "std": (0.1, True)},
        {"in_channels": 1, "std": (0.1, "a")},
        {"in_channels": 1, "std": (0.1, 0.2), "how": lambda weight, channels: weight[:, :1]},
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any]) -> None:
    error = refused(conv(), ArgumentError, None, **{"example": image(), **arguments})
    assert error.where


def test_a_wrapped_model_is_refused() -> None:
    refused(nn.DataParallel(conv()), WrappedModelError, None, example=image(), in_channels=1)


@pytest.mark.parametrize(
    "how",
    [
        lambda weight, channels: weight,
        lambda weight, channels: None,
        lambda weight, channels: 1 / 0,
        lambda weight, channels: weight[:, :1] * float("nan"),
    ],
)
def test_a_callable_that_makes_no_weight_is_refused(how: Any) -> None:
    refused(conv(), ArgumentError, "how", example=image(), in_channels=1, how=how)
