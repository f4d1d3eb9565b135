"""Heads whose weight is a buffer or a plain tensor, and what only looks like one."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()


class Held(nn.Module):
    """Features, and five rows of six numbers that no optimizer sees."""

    rows: Tensor

    def __init__(self, *, plain: bool = False) -> None:
        super().__init__()
        self.body, self.num_classes = nn.Linear(8, 6), 5
        self.scale = nn.Parameter(torch.tensor(2.0))
        if plain:
            self.rows = torch.randn(5, 6)
        else:
            self.register_buffer("rows", torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.body(x).relu(), self.rows)


class Prototypes(Held):
    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x), self.rows)


class ByHand(Held):
    def forward(self, x: Tensor) -> Tensor:
        return -(self.body(x)[:, None] - self.rows).pow(2).sum(-1)


class ZeroShot(Held):
    def forward(self, x: Tensor) -> Tensor:
        texts = functional.normalize(self.rows, dim=-1)
        return self.scale.exp() * functional.normalize(self.body(x), dim=-1) @ texts.t()


class ScaledTexts(Held):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ (self.scale.exp() * functional.normalize(self.rows, dim=-1)).t()


class Int8(nn.Module):
    weight: Tensor
    scale: Tensor

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-9, 9, (made, given), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(made, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype) * self.scale)


class Behind(nn.Module):
    """A layer, and buffers behind it that rework what it made."""

    matrix: Tensor

    def __init__(self, layer: nn.Module, matrix: Tensor, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x)
        if self.how == "product":
            return made @ self.matrix
        if self.how == "upsample":
            return functional.conv_transpose2d(made, self.matrix, stride=2, groups=made.shape[1])
        return functional.conv2d(made, self.matrix, groups=made.shape[1])


@pytest.mark.parametrize(
    "model",
    [Held(), Held(plain=True), Prototypes(), ByHand(), ZeroShot(), ScaledTexts()],
    ids=["buffer", "plain", "prototypes", "by_hand", "zero_shot", "scaled_texts"],
)
def test_a_weight_that_is_no_parameter(model: Held) -> None:
    x = torch.randn(4, 8)
    (head,) = surgery.find_heads(model, x, registry=NO_PLUGINS)
    assert (head.address, head.in_features, head.num_classes) == ("rows", 6, 5)
    assert head.weights == (("rows",),)
    assert head.corroborated
    outcome = surgery.replace_head(model, 7, example=x, registry=NO_PLUGINS)
    assert outcome.model(x).shape == (4, 7)
    # Drawn as a weight: no row is like another, none is zero.
    assert torch.unique(model.rows, dim=0).shape == (7, 6)
    assert bool(model.rows.abs().sum(1).min() > 0)
    assert any("rows is no parameter" in note for note in outcome.plan.notes)
    assert model.num_classes == 7
    outcome.undo()
    assert model(x).shape == (4, 5)


def test_a_quantised_weight_is_a_head_that_cannot_be_drawn() -> None:
    model, x = nn.Sequential(Int8(8, 6), nn.ReLU(), Int8(6, 5)), torch.randn(4, 8)
    (head,) = surgery.find_heads(model, x, registry=NO_PLUGINS)
    assert (head.address, head.num_classes) == ("2", 5)
    with pytest.raises(PlanError, match="whole numbers"):
        surgery.replace_head(model, 7, heads="2", example=x, registry=NO_PLUGINS)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Behind(nn.Linear(8, 5), torch.eye(5), "product"), (2, 8)),
        (Behind(nn.Conv2d(3, 5, 1), torch.ones(5, 1, 3, 3) / 9, "blur"), (2, 3, 8, 8)),
        (Behind(nn.Conv2d(3, 5, 1), torch.ones(5, 1, 4, 4) / 4, "upsample"), (2, 3, 8, 8)),
        (Behind(nn.Conv1d(3, 5, 1), torch.ones(6, 12), "product"), (2, 3, 6)),
    ],
    ids=["class_by_class", "blur", "upsample", "resample"],
)
def test_what_reworks_the_classes_is_no_head(model: Behind, example: tuple[int, ...]) -> None:
    heads = surgery.find_heads(model, torch.randn(example), registry=NO_PLUGINS)
    assert "matrix" not in {head.address for head in heads}
    assert "layer.weight" in heads.ending


def test_a_packed_head_is_found_where_its_layer_runs() -> None:
    layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(layers)
        heads = surgery.find_heads(model, torch.randn(4, 8), registry=NO_PLUGINS)
    assert [(head.address, head.kind, head.num_classes) for head in heads] == [("2", "packed", 5)]
    assert "ends in 2 (quantized.linear_dynamic" in heads.ending
