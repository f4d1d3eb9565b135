"""Numbers of classes in every form they are kept in: they follow, or the plan says why not."""

from __future__ import annotations

import enum
import functools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surgery
from surgery.facts import find_facts
from surgery.families.registry import Registry
from surgery.operations.plan import Outcome
from tests.hostile import Headed, vectors
from tests.operations.state import differences, state_of


def headed(**facts: Any) -> nn.Module:
    model = Headed()
    for name, value in facts.items():
        setattr(model, name, value)
    return model


def replaced(model: nn.Module) -> Outcome:
    return surgery.replace_head(model, 7, heads="fc", example=vectors()(), registry=Registry.of())


def at(model: nn.Module, path: str) -> Any:
    here: Any = model
    for name in path.split("."):
        here = here[name] if isinstance(here, dict) else getattr(here, name)
    return here


class Classed(Headed):
    num_classes = 5


class Below(Classed):
    """Has the number from the class above."""


class Settings:
    num_labels = 5


class Slotted:
    __slots__ = ("num_classes",)

    def __init__(self) -> None:
        self.num_classes = 5


FORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "numpy": (lambda: headed(num_classes=np.int64(5)), "num_classes"),
    "numpy in a dict": (lambda: headed(cfg={"n_classes": np.int32(5)}), "cfg.n_classes"),
    "class": (Classed, "num_classes"),
    "class above": (Below, "num_classes"),
    "class of a configuration": (lambda: headed(config=Settings()), "config.num_labels"),
    "slot": (lambda: headed(config=Slotted()), "config.num_classes"),
    "two levels": (lambda: headed(cfg={"model": {"num_classes": 5}}), "cfg.model.num_classes"),
    "two levels, another name": (
        lambda: headed(hparams={"head": {"num_classes": 5}}),
        "hparams.head.num_classes",
    ),
    "objects in dicts in objects": (
        lambda: headed(args=SimpleNamespace(model={"head": SimpleNamespace(n_classes=5)})),
        "args.model.head.n_classes",
    ),
    "four levels": (
        lambda: headed(cfg=OrderedDict(a={"b": {"c": {"num_labels": 5}}})),
        "cfg.a.b.c.num_labels",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_number_follows_in_its_own_type_and_comes_back(name: str) -> None:
    make, path = FORMS[name]
    model = make()
    before, old = state_of(model), at(model, path)
    assert {fact.address: fact.classes for fact in find_facts(model)} == {path: 5}
    outcome = replaced(model)
    assert at(model, path) == 7
    assert type(at(model, path)) is type(old)
    outcome.undo()
    assert at(model, path) == 5
    assert type(at(model, path)) is type(old)
    assert not differences(before, state_of(model))


def test_a_number_of_the_class_stays_with_the_class() -> None:
    model, other = Below(), Below()
    outcome = replaced(model)
    assert (model.num_classes, other.num_classes, Classed.num_classes) == (7, 5, 5)
    outcome.undo()
    assert "num_classes" not in vars(model)


def test_a_removed_head_leaves_zero_of_the_same_type() -> None:
    model = headed(num_classes=np.int64(5))
    surgery.remove_head(model, heads="fc", example=vectors()())
    assert model.num_classes == 0
    assert type(model.num_classes) is np.int64


class Five(enum.IntEnum):
    FIVE = 5


@pytest.mark.parametrize(("old", "kind"), [(Five.FIVE, int), (np.uint8(5), np.uint8)])
def test_a_type_without_that_number_becomes_a_plain_one(old: Any, kind: type) -> None:
    model = headed(num_classes=old)
    replaced(model)
    assert model.num_classes == 7
    assert type(model.num_classes) is kind


class Sharing(Headed):
    cfg = {"num_classes": 5}  # noqa: RUF012


def buffered() -> nn.Module:
    model = Headed()
    model.register_buffer("num_classes", torch.tensor(5))
    return model


# What does not follow, where it is, and why.
STAYING: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a buffer": (buffered, "num_classes", "it is a tensor"),
    "a tensor": (lambda: headed(num_classes=torch.tensor(5)), "num_classes", "it is a tensor"),
    "a dict of the class": (Sharing, "cfg.num_classes", "it belongs to a class"),
    "a class as configuration": (
        lambda: headed(config=Settings),
        "config.num_labels",
        "it belongs to a class",
    ),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_cannot_follow_stays_and_is_noted(name: str) -> None:
    make, path, reason = STAYING[name]
    model = make()
    outcome = replaced(model)
    assert at(model, path) == 5
    (note,) = (note for note in outcome.plan.notes if path in note)
    assert f"{path} says 5 and stays: {reason}" in note


def test_configurations_that_hold_themselves_or_fail_are_survived() -> None:
    class Failing(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise RuntimeError(name)

    cfg: dict[str, Any] = {"num_classes": 5, "lazy": Failing(num_classes=5)}
    cfg["self"] = {"up": cfg}
    model = headed(cfg=cfg)
    assert [fact.address for fact in find_facts(model)] == ["cfg.num_classes"]
    replaced(model)
    assert cfg["num_classes"] == 7


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), np.float64(5), torch.tensor(5.0), torch.tensor([5]), torch.tensor(True)],
    ids=repr,
)
def test_what_is_no_whole_number_is_no_fact(value: Any) -> None:
    assert find_facts(headed(num_classes=value)) == ()


def test_a_tensor_without_a_value_is_no_fact() -> None:
    assert find_facts(headed(num_classes=torch.tensor(5, device="meta"))) == ()


def test_nothing_is_computed_and_kept_by_looking() -> None:
    class Lazy(Headed):
        @functools.cached_property
        def num_classes(self) -> int:
            return 5

    model = Lazy()
    before = state_of(model)
    assert find_facts(model) == ()
    assert not differences(before, state_of(model))


def test_other_numbers_inside_configurations_stay() -> None:
    model = headed(cfg={"data": {"num_classes": 1000}, "model": {"num_classes": 5, "width": 5}})
    replaced(model)
    assert model.cfg == {"data": {"num_classes": 1000}, "model": {"num_classes": 7, "width": 5}}
