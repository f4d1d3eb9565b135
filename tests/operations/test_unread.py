"""Layers that run for nothing that is returned: said where they make as much as the old head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()
CLASSES = 5


class Exits(nn.Module):
    """A classifier behind every stage, of which the last one's answer is returned."""

    def __init__(self, exits: int = 2, early: int = CLASSES) -> None:
        super().__init__()
        self.num_classes = CLASSES
        self.stages = nn.ModuleList([nn.Linear(8, 8) for _ in range(exits)])
        sizes = [*[early] * (exits - 1), CLASSES]
        self.exits = nn.ModuleList([nn.Linear(8, size) for size in sizes])

    def answers(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x).relu()
            found.append(leave(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.answers(x)[-1]


class Measured(Exits):
    """What the early exit says is boiled down to a number, which nobody gets."""

    def forward(self, x: Tensor) -> Tensor:
        early, last = self.answers(x)
        self.early_loss = early.log_softmax(-1).sum()
        return last


class Trained(Exits):
    """The early exits are returned in train mode."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.answers(x)
        return tuple(found) if self.training else found[-1]


class Again(Exits):
    """The head itself is run once more, on what came before, for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.exits[-1](x.tanh())
        return self.answers(x)[-1]


class Wide(Exits):
    """What nobody reads is scores of something else, behind a layer as wide as the classes."""

    def __init__(self) -> None:
        super().__init__(early=3)
        self.narrow = nn.Linear(8, CLASSES)
        self.other = nn.Linear(CLASSES, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.other(self.narrow(x).relu())
        return self.answers(x)[-1]


def notes(model: nn.Module, classes: int = 3) -> tuple[str, ...]:
    x = torch.zeros(2, 8)
    return surgery.replace_head(model, classes, example=x, registry=NO_PLUGINS).plan.notes


@pytest.mark.parametrize("build", [Exits, Measured])
def test_a_classifier_whose_answer_is_dropped_is_named(build: Callable[[], nn.Module]) -> None:
    model = build()
    assert notes(model) == (
        "no output reads what is made with exits.0.weight, which keeps 5 features and may be about "
        "the classes",
    )
    assert [leave.out_features for leave in model.get_submodule("exits").children()] == [5, 3]


def test_of_many_the_first_are_named_and_the_rest_counted() -> None:
    (note,) = notes(Exits(exits=6))
    assert "exits.0.weight, exits.1.weight, exits.2.weight and 2 more, which keep 5" in note


@pytest.mark.parametrize(
    "build", [Trained, lambda: Again(exits=1), Wide], ids=["trained", "again", "wide"]
)
def test_what_an_output_reads_and_what_has_another_size_needs_no_word(
    build: Callable[[], nn.Module],
) -> None:
    assert notes(build()) == ()


def test_nothing_is_said_where_the_number_of_classes_stays() -> None:
    assert notes(Exits(), CLASSES) == ()
