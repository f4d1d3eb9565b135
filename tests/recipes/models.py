"""Small models for recipes, and the families that ship with the project, installed or not."""

from __future__ import annotations

import random
import tomllib
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

import torch
from torch import nn

from surgery.families.registry import Registry

ROOT = Path(__file__).parents[2]
SMALL = "tests.recipes.models:small"


def small(width: int = 8, num_classes: int = 4) -> nn.Module:
    """A classifier of grey images."""
    model = nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
    model.num_classes = num_classes  # type: ignore[assignment]
    return model


class Drawn(nn.Module):
    """A layer with values that nobody's initialiser draws."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(4))
        self.register_buffer("more", torch.tensor([random.random() for _ in range(4)]))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + self.noise + self.more)


@cache
def shipped() -> Registry:
    """Every family of the project, whether or not it is installed."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    return Registry.load([EntryPoint(*point, "surgery") for point in points["surgery"].items()])
