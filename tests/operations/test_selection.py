"""What a person names is what is chosen, and what names nothing, or two things, is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from surgery_plugins import resnet
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.operations import selection
from surgery.operations.selection import select
from surgery.patterns import prefixes
from tests.operations.test_freezing import trainable

NONE = Registry.of()


class Named(nn.Module):
    """A part called ``heads``, and a layer that makes the classes."""

    def __init__(self, heads: Any, last: str) -> None:
        super().__init__()
        self.heads = heads
        if last != "heads":
            self.fc = nn.Linear(4, 3)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.heads(x) if isinstance(self.heads, nn.Module) else x * self.heads
        return self.fc(x) if self.last == "fc" else x


@pytest.mark.parametrize("verb", [surgery.freeze, surgery.unfreeze])
@pytest.mark.parametrize("argument", ["patterns", "except_"])
def test_heads_that_are_not_in_the_module_of_that_name_are_refused(verb: Any, argument: str):
    model = Named(nn.Linear(4, 4), "fc")
    with pytest.raises(ArgumentError) as raised:
        verb(model, **{argument: "heads"}, example=torch.rand(2, 4), registry=NONE)
    assert "['fc']" in raised.value.found
    assert raised.value.fix == f"{argument}=['fc'] or {argument}='heads.*'"
    assert len(trainable(model)) == 4
    verb(model, **{argument: ["fc", "heads.*"]})


def test_a_tensor_called_heads_is_named_by_an_expression():
    model = Named(nn.Parameter(torch.ones(4)), "fc")
    with pytest.raises(ArgumentError) as raised:
        surgery.freeze(model, "heads", example=torch.rand(2, 4), registry=NONE)
    assert raised.value.fix == "patterns=['fc'] or patterns=re.compile('heads')"
    surgery.freeze(model, re.compile("heads"))
    assert trainable(model) == {"fc.weight", "fc.bias"}


def test_heads_inside_the_module_of_that_name_are_meant():
    heads = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model = Named(heads, "heads")
    surgery.freeze(model, "heads", example=torch.rand(2, 4), registry=NONE)
    assert trainable(model) == {"heads.0.weight", "heads.0.bias"}


def test_a_model_without_heads_says_so():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match="no heads were found"):
        surgery.freeze(model, except_="heads", example=torch.rand(2, 3), registry=NONE)


@pytest.mark.parametrize("key", ["a[0]", "a*", "a?", "[!a]"])
def test_every_address_names_itself(key: str):
    model = nn.ModuleDict({key: nn.Linear(2, 2), "a0": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    for address in dict(model.named_parameters()):
        assert select(model, address, "patterns") == {address}
    for address in dict(model.named_children()):
        found = select(model, address, "patterns")
        assert found == {address, f"{address}.weight", f"{address}.bias"}
        assert all(address in prefixes(inside) for inside in found)


def test_however_many_addresses_are_named_each_of_the_model_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    names = [name for name, _ in model.named_parameters()]
    asked: list[str] = []
    monkeypatch.setattr(selection, "prefixes", lambda name: asked.append(name) or prefixes(name))
    assert select(model, names, "patterns", registry=NONE) == set(names)
    assert len(asked) == len(set(asked)) == 90
    assert select(model, (), "patterns", registry=NONE) == frozenset()


def test_an_expression_that_fits_a_part_says_that_it_must_fit_the_whole():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="from its start to its end") as raised:
        surgery.freeze(model, re.compile("WEIGHT$", re.IGNORECASE))
    assert raised.value.found == "it fits a part of '0.weight'"
    fix = raised.value.fix.removeprefix("patterns=")
    surgery.freeze(model, eval(fix, {"re": re}))
    assert trainable(model) == {"0.bias"}


def fails(name: str) -> bool:
    raise LookupError(name)


@pytest.mark.parametrize("verb", [surgery.freeze, surgery.unfreeze])
@pytest.mark.parametrize("argument", ["patterns", "except_"])
@pytest.mark.parametrize(
    "wrong",
    [None, 3, b"0", re.compile(b"0"), [["0"]], ["0", None], lambda name, tensor: True, fails],
)
def test_what_is_no_pattern_is_refused(verb: Any, argument: str, wrong: Any):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ArgumentError) as raised:
        verb(model, **{argument: wrong})
    assert argument in raised.value.where
    assert len(trainable(model)) == 2


def test_patterns_may_be_given_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    outcome = surgery.freeze(model, (name for name in ["1"]), except_=(n for n in ["1.bias"]))
    assert outcome.plan.title == "freeze('1', except_='1.bias')"
    assert outcome.plan.call["arguments"]["patterns"] == ["1"]
    assert outcome.plan.call["arguments"]["except_"] == ["1.bias"]
    assert trainable(model) == {"0.weight", "0.bias", "1.bias"}


def staged() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model: nn.Module = torchvision.models.resnet18()
    return model


RESNET = Registry.of(resnet.FAMILY)


@pytest.mark.parametrize("stages", range(5))
def test_stages_from_the_end_leave_frozen_what_stages_from_the_start_freeze(stages: int):
    one, other = staged(), staged()
    surgery.freeze(one)
    surgery.unfreeze(one, stages=stages, registry=RESNET)
    surgery.freeze(other, stages=4 - stages, registry=RESNET)
    assert trainable(one) == trainable(other) >= {"fc.weight", "fc.bias"}
    modes = [[module.training for module in model.train().modules()] for model in (one, other)]
    assert modes[0] == modes[1]


def test_patterns_are_unfrozen_besides_stages_and_exceptions_are_not():
    model = staged()
    surgery.freeze(model)
    surgery.unfreeze(model, "conv1", stages=0, except_="fc.bias", registry=RESNET)
    assert trainable(model) == {"conv1.weight", "fc.weight"}
    surgery.unfreeze(model, except_=["layer*", "bn1"])
    assert trainable(model) == {"conv1.weight", "fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("verb", "means"), [(surgery.freeze, "the stem"), (surgery.unfreeze, "what follows")]
)
@pytest.mark.parametrize("stages", [-1, 5, True, "2"])
def test_a_wrong_number_of_stages_says_what_none_means(verb: Any, means: str, stages: Any):
    with pytest.raises(ArgumentError, match=f"besides {means}.*: 0 is that alone") as raised:
        verb(staged(), stages=stages, registry=RESNET)
    assert raised.value.fix == f"surgery.{verb.__name__}(model, stages=3)"
