"""torchinfo's table, with right totals, and a model that never notices."""

from __future__ import annotations

import gc
import random
import re
import weakref
from typing import Any

import pytest
import torch
import torchinfo
import torchvision
from torch import nn
from torch.nn.utils import prune
from torchinfo import torchinfo as engine

import surgery
from surgery.errors import ArgumentError, ExampleError, UnsupportedModelError
from tests.strategies import HOSTILE, Hostile

NETWORKS = ["resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "squeezenet1_1"]


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name)
    return model


def layers(table: torchinfo.ModelStatistics) -> list[str]:
    """All but the memory: torchinfo forgets parameters of modules that have children."""
    return [line for line in str(table).splitlines() if not re.match("Params size|Estimated", line)]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_table_of_torchinfo(name: str):
    example = torch.zeros(2, 3, 224, 224, device="meta")
    columns = ("input_size", "output_size", "num_params", "mult_adds", "trainable")
    ours = surgery.summary(on_meta(name), example, columns=columns)
    theirs = torchinfo.summary(on_meta(name), input_data=example, col_names=columns, verbose=0)
    assert layers(ours) == layers(theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_example_is_filled_in(name: str):
    model = on_meta(name)
    table = surgery.summary(model)
    assert table.summary_list[0].output_size[-1] == 1000
    assert table.total_params == surgery.audit(model).total


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 4)
        self.fc = nn.Linear(4, 100, bias=False)
        self.fc.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor, mode: str | None = None, *, depth: int = 0) -> Any:
        return {"logits": self.fc(self.embedding(ids)) + depth}


def test_its_totals_are_those_of_the_audit():
    assert surgery.summary(Tied(), torch.zeros(2, 5, dtype=torch.long)).total_params == 400


@pytest.mark.parametrize(
    "example",
    [
        {"ids": torch.zeros(2, 5, dtype=torch.long)},
        {"ids": torch.zeros(2, 5, dtype=torch.long), "mode": None, "depth": 3},
        (torch.zeros(2, 5, dtype=torch.long), "fast"),
        surgery.Example((torch.zeros(2, 5, dtype=torch.long),), {"depth": 3}),
    ],
)
def test_arguments_that_torchinfo_cannot_take(example: Any):
    assert surgery.summary(Tied(), example).summary_list[0].output_size == [2, 5, 100]


def picture(model: nn.Module) -> list[Any]:
    """Everything a forward pass could change."""
    return [
        [(name, id(m), m.training, dict(m._forward_hooks)) for name, m in model.named_modules()],
        [
            (name, id(t), t._version, t.tolist())
            for name, t in model.state_dict(keep_vars=True).items()
        ],
        [sorted(m.__dict__) for m in model.modules()],
        [id(p.grad) for p in model.parameters()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        torch.is_grad_enabled(),
        dict(engine._cached_forward_pass),
    ]


def half_frozen() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)
    ).train()
    model[1].eval()
    prune.l1_unstructured(model[4], "weight", 0.5)
    model[0].register_forward_hook(draw_a_number)
    return model


def draw_a_number(module: nn.Module, given: Any, made: Any) -> None:
    torch.rand(1)


def test_the_model_never_notices():
    model = half_frozen()
    before = picture(model)
    surgery.summary(model, torch.ones(2, 3, 8, 8))
    assert picture(model) == before


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.norm(x)
        return x @ torch.zeros(7, 7)


def test_nor_does_a_model_that_fails():
    model = Fails()
    before = picture(model)
    with pytest.raises(ExampleError) as error:
        surgery.summary(model, torch.ones(2, 3))
    assert "torchinfo" not in str(error.value)
    assert picture(model) == before


def test_values_are_used_where_forward_asks_for_them():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if x.sum().item() > 0 else self.fc(-x)

    model = Branching()
    before = picture(model)
    assert surgery.summary(model, torch.ones(4, 3)).summary_list[0].output_size == [4, 2]
    assert picture(model) == before


def test_hooks_on_the_root_run_once():
    calls: list[str] = []
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_forward_hook(lambda module, args, output: calls.append(tuple(output.shape)))
    surgery.summary(model, torch.ones(4, 3))
    assert calls == ["before", (4, 2)]


def test_wrappers_are_read_through():
    model = nn.Sequential(nn.Linear(3, 2))
    assert str(surgery.summary(nn.DataParallel(model), torch.ones(4, 3))) == str(
        surgery.summary(model, torch.ones(4, 3))
    )


def test_the_table_keeps_nothing_alive():
    model = nn.Sequential(nn.Linear(3, 2))
    table = surgery.summary(model, torch.ones(4, 3))
    gone = [weakref.ref(model), weakref.ref(model[0].weight)]
    reached, queue = set(), [table]
    while queue:
        item = queue.pop()
        assert not isinstance(item, torch.Tensor)
        if id(item) not in reached and not isinstance(item, type):
            reached.add(id(item))
            queue.extend(gc.get_referents(item))
    del model
    gc.collect()
    assert not any(ref() for ref in gone)
    assert str(table)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_hostile_models_have_a_table_too(hostile: Hostile):
    model = hostile.make()
    table = surgery.summary(model, hostile.example())
    assert table.total_params == surgery.audit(model).total
    assert str(table)


@pytest.mark.parametrize(
    "wrong", [{"depth": -1}, {"depth": None}, {"columns": ("colour",)}, {"columns": "num_params"}]
)
def test_an_option_that_is_none_is_an_error(wrong: dict[str, Any]):
    with pytest.raises(ArgumentError) as error:
        surgery.summary(nn.Linear(2, 2), torch.zeros(1, 2), **wrong)
    assert error.value.where in wrong


def test_no_model_is_an_error():
    with pytest.raises(UnsupportedModelError):
        surgery.summary(nn.Sequential(nn.LazyLinear(2)), torch.zeros(1, 2))
