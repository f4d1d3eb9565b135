"""Heads behind nested tensors, whose rows are of different lengths: every operation is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()


class Ragged(nn.Module):
    """A trunk with a normalisation, which asks a nested tensor for its sizes."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.fc = nn.Linear(16, classes)

    def features(self, rows: list[Tensor]) -> Tensor:
        nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        return self.norm(self.trunk(nested))  # type: ignore[no-any-return]


class Pooled(Ragged):
    def forward(self, rows: list[Tensor]) -> Tensor:
        means = [one.mean(0) for one in self.features(rows).unbind()]
        return self.fc(torch.stack(means))  # type: ignore[no-any-return]


class Padded(Ragged):
    def forward(self, rows: list[Tensor]) -> Tensor:
        scores: Tensor = self.fc(self.features(rows))
        padded: Tensor = scores.to_padded_tensor(0.0)
        return padded


class ForEachRow(Ragged):
    def forward(self, rows: list[Tensor]) -> Tensor:
        return self.fc(self.features(rows))  # type: ignore[no-any-return]


class Given(Ragged):
    """It takes a nested tensor."""

    def forward(self, nested: Tensor) -> Tensor:
        return self.fc(self.norm(self.trunk(nested)).mean(1))  # type: ignore[no-any-return]


def rows() -> list[Tensor]:
    return [torch.randn(3, 8), torch.randn(5, 8)]


def example(kind: type[Ragged]) -> tuple[Any, ...]:
    if kind is Given:
        return (torch.nested.nested_tensor(rows(), layout=torch.jagged),)
    return (rows(),)


@pytest.mark.parametrize(
    ("kind", "path", "axis"),
    [
        (Pooled, "output", 1),
        (Padded, "output", 2),
        (ForEachRow, "output.values", 1),
        (Given, "output", 1),
    ],
    ids=["pooled", "padded", "for each row", "given"],
)
def test_a_head_behind_a_nested_tensor_is_found_replaced_and_undone(
    kind: type[Ragged], path: str, axis: int
) -> None:
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = example(kind)
    found = surgery.find_heads(model, arguments, registry=NO_PLUGINS)
    assert [(head.address, head.output, head.class_axis) for head in found] == [("fc", path, axis)]
    outcome = surgery.replace_head(model, 3, heads="fc", example=arguments, registry=NO_PLUGINS)
    assert model(*arguments).shape[-1] == 3
    outcome.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
