"""Layers that run for other inputs only are never left behind without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()
ONES = torch.ones(3, 6)


class Branching(nn.Module):
    """Positive inputs go through ``second``, all others through ``first``."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.num_classes = 5
        self.branches = nn.ModuleList([first, second])

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[int(x.mean() > 0)](x)


class Bare(nn.Module):
    """The same, with bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.rows = nn.ParameterList([torch.randn(5, 6) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.rows[int(x.mean() > 0)].t()


class Routed(nn.Module):
    """Every sample goes to one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList([nn.Linear(6, 5) for _ in range(3)])
        with torch.no_grad():
            self.gate.weight.zero_()
            self.gate.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        choice = self.gate(x).argmax(1)
        out = x.new_zeros(len(x), self.num_classes)
        for number in choice.unique().tolist():
            out[choice == number] = self.experts[number](x[choice == number])
        return out


class Unused(nn.Module):
    """A layer like the head that nothing runs; values choose nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.fc = nn.Linear(6, 5)
        self.old = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5))


def replaced(model: nn.Module) -> None:
    surgery.replace_head(model, 7, example=ONES, registry=NO_PLUGINS)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Branching(nn.Linear(6, 5), nn.Linear(6, 5)), ["branches.0"]),
        (lambda: Branching(deep(), deep()), ["branches.0.2"]),
        (Bare, ["rows.0"]),
        (Routed, ["experts.0", "experts.2"]),
    ],
    ids=["layers", "branches", "parameters", "experts"],
)
def test_twins_that_did_not_run_are_named(make: Callable[[], nn.Module], named: list[str]) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError) as caught:
        replaced(model)
    assert caught.value.where == ", ".join(named)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_what_the_refusal_advises_works() -> None:
    model = Branching(nn.Linear(6, 5), nn.Linear(6, 5))
    surgery.replace(model, {"branches.0": nn.Linear(6, 7)}, example=ONES, registry=NO_PLUGINS)
    replaced(model)
    assert model(ONES).shape == model(-ONES).shape == (3, 7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Branching(nn.Linear(6, 8), nn.Linear(6, 5)),
        lambda: Branching(nn.Identity(), nn.Linear(6, 5)),
        Unused,
    ],
    ids=["another shape", "another class", "no branch"],
)
def test_what_is_unlike_the_head_or_beside_no_branch_is_left_alone(
    make: Callable[[], nn.Module],
) -> None:
    model = make()
    replaced(model)
    assert model(ONES).shape == (3, 7)


def test_the_same_number_leaves_nothing_behind() -> None:
    model = Branching(nn.Linear(6, 5), nn.Linear(6, 5))
    surgery.replace_head(model, 5, example=ONES, registry=NO_PLUGINS)
    assert model(ONES).shape == model(-ONES).shape == (3, 5)


class ByTask(nn.Module):
    """An integer of the input chooses the head; integers have values on meta as well."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.heads = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])

    def forward(self, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        return self.heads[int(task)](x)


def test_a_head_that_another_integer_chooses_is_not_left_behind() -> None:
    model = ByTask()
    example = (torch.zeros(2, 6), torch.tensor(0))
    assert surgery.record(model, example).backend == "meta"
    with pytest.raises(PlanError, match="values of the input decide") as raised:
        surgery.replace_head(model, 7, example=example, registry=Registry.of())
    assert raised.value.where == "heads.1"
    assert (model.num_classes, model.heads[0].out_features) == (5, 5)


class ByAttribute(ByTask):
    """An attribute chooses the head, which no recording can know of."""

    def forward(self, x: torch.Tensor, task: torch.Tensor | None = None) -> torch.Tensor:
        return self.heads[0 if self.training is not None else 1](x)


def test_a_head_that_only_code_leaves_out_is_named_in_the_plan() -> None:
    model = ByAttribute()
    outcome = surgery.replace_head(model, 7, example=torch.zeros(2, 6), registry=Registry.of())
    assert any("heads.1.weight" in note for note in outcome.plan.notes)
