"""What a model says of its number of classes: where it is found, and where it is not."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from surgery.facts import CONFIGURATIONS, COUNTS, MAPPINGS, NAMES, Fact, find_facts, members
from tests.hostile import Headed
from tests.hostile_facts import Labels
from tests.strategies import HOSTILE, Hostile, module_trees
from tests.test_strategies import fact


def paths(model: nn.Module) -> dict[str, int]:
    return {found.address: found.classes for found in find_facts(model)}


def with_attributes(**attributes: Any) -> nn.Module:
    model = Headed(5)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_name_of_a_count(name: str) -> None:
    assert find_facts(with_attributes(**{name: 5})) == (Fact("", name, "count", 5),)


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("kind", [list, tuple])
def test_every_name_of_a_list_of_names(name: str, kind: type) -> None:
    assert find_facts(with_attributes(**{name: kind("abc")})) == (Fact("", name, "names", 3),)


@pytest.mark.parametrize("name", sorted(MAPPINGS))
def test_every_name_of_a_mapping(name: str) -> None:
    assert find_facts(with_attributes(**{name: {0: "a", 1: "b"}})) == (
        Fact("", name, "mapping", 2),
    )


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
@pytest.mark.parametrize("before", ["", "_", "model_"])
@pytest.mark.parametrize(
    "make",
    [
        lambda count: {"num_classes": count},
        lambda count: SimpleNamespace(num_classes=count),
        lambda count: namedtuple("C", ["num_classes"])(count),
    ],
    ids=["dict", "object", "named tuple"],
)
def test_configurations_are_looked_into(name: str, before: str, make: Any) -> None:
    model = with_attributes(**{before + name: make(5)})
    assert paths(model) == {f"{before}{name}.num_classes": 5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 0),
        ("num_classes", -1),
        ("num_classes", True),
        ("num_classes", 5.0),
        ("num_classes", "5"),
        ("num_classes", None),
        ("classes", []),
        ("classes", [1, 2]),
        ("classes", "abc"),
        ("id2label", {}),
        ("id2label", None),
        ("num_heads", 5),
        ("hidden_size", 5),
        ("config", None),
        ("config", 5),
        ("config", {5: "num_classes"}),
        ("settings", {"num_classes": 5}),
    ],
)
def test_what_is_no_fact(name: str, value: Any) -> None:
    assert find_facts(with_attributes(**{name: value})) == ()


def test_properties_count_on_modules_and_configurations() -> None:
    class Known(Headed):
        @property
        def num_classes(self) -> int:
            return self.fc.out_features

    model = Known(5)
    model.config = Labels(5)
    assert paths(model) == {
        "num_classes": 5,
        "config.num_labels": 5,
        "config.id2label": 5,
        "config.label2id": 5,
    }


def test_a_property_that_raises_says_nothing() -> None:
    class Broken(Headed):
        @property
        def num_classes(self) -> int:
            raise RuntimeError("not yet")

        @property
        def num_labels(self) -> int:
            raise AttributeError("never")

    assert find_facts(Broken(5)) == ()


def test_facts_inside_bear_the_address_of_their_module() -> None:
    inner = with_attributes(num_classes=5)
    found = find_facts(nn.Sequential(nn.ReLU(), nn.Sequential(inner)))
    assert found == (Fact("1.0", "num_classes", "count", 5),)
    assert found[0].address == "1.0.num_classes"


def test_a_shared_module_is_asked_once() -> None:
    inner = with_attributes(num_classes=5)
    assert len(find_facts(nn.ModuleList([inner, inner]))) == 1


@pytest.mark.parametrize("truth", HOSTILE, ids=str)
def test_whatever_follows_is_among_the_facts_or_tensors(truth: Hostile) -> None:
    model = truth.make()
    known = paths(model)
    for path in truth.follows:
        value = fact(model, path)
        if isinstance(value, int):
            assert known[path] == value
        elif isinstance(value, dict):
            assert known[path] == len(value)


@given(tree=module_trees())
def test_trees_without_such_names_have_no_facts(tree: nn.Module) -> None:
    assert find_facts(tree) == ()


@given(tree=module_trees(), count=st.integers(1, 99), data=st.data())
def test_a_fact_is_found_wherever_it_is_hung(tree: nn.Module, count: int, data: Any) -> None:
    address = data.draw(st.sampled_from([name for name, _ in tree.named_modules()]))
    tree.get_submodule(address).num_classes = count
    assert find_facts(tree) == (Fact(address, "num_classes", "count", count),)


def test_members_of_what_may_be_a_configuration() -> None:
    assert members({"a": 1, 2: 3}) == {"a": 1}
    assert members(SimpleNamespace(a=1)) == {"a": 1}
    assert members(Labels(2))["num_labels"] == 2
    assert members(5) == {}
