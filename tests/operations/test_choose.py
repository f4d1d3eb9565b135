"""Which heads are taken, and every way to ask for them wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.errors import AmbiguousHeadError, ArgumentError, NoHeadError, UncorroboratedWarning
from surgery.heads import find_heads
from surgery.operations.choose import check_classes, check_num_classes, choose
from tests.hostile import Headed, mlp, vectors


class Tasks(nn.Module):
    """Three tasks: two of three classes, one of four, one head under two names."""

    def __init__(self, sizes: tuple[int, int, int] = (3, 4, 3)) -> None:
        super().__init__()
        self.trunk = mlp()
        one, two, three = sizes
        self.heads = nn.ModuleDict({"age": nn.Linear(8, one), "mood": nn.Linear(8, two)})
        self.deep = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, three))
        self.alias = self.heads["age"]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.trunk(x)
        return self.heads["age"](x), self.heads["mood"](x), self.deep(x)


def chosen(wanted: Any, number: int | None = 7, verb: str = "replace_head") -> dict[str, Any]:
    heads = find_heads(Tasks(), vectors()())
    return {head.address: size for head, size in choose(heads, wanted, number, verb)}


@pytest.mark.parametrize("wrong", [0, -1, True, False, 2.0, "7", None, [7], float("nan")])
def test_a_number_of_classes_is_a_whole_number_of_at_least_one(wrong: Any) -> None:
    with pytest.raises(ArgumentError) as raised:
        check_num_classes(wrong)
    assert str(raised.value) == (
        "the number of classes is a whole number of at least 1\n"
        "  where: num_classes\n"
        "  expected: 1, 2, 3, ...\n"
        f"  found: {wrong!r}\n"
        "  next: surgery.replace_head(model, 7)"
    )


@given(st.integers(1, 10**9))
def test_whole_numbers_of_any_kind_are_taken(number: int) -> None:
    assert check_num_classes(number) == number
    taken = check_num_classes(np.int64(number))
    assert (taken, type(taken)) == (number, int)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("cats", "'cats'"),
        ([], "[]"),
        ({"cat": 0}, "{'cat': 0}"),
        (3, "3"),
        (["cat", "cat", "dog", "dog"], "twice: ['cat', 'dog']"),
        (["cat", 3], "no string: 3"),
        (["cat", None], "no string: None"),
    ],
)
def test_names_of_classes_are_different_strings(wrong: Any, found: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        check_classes(wrong, None)
    assert (raised.value.where, raised.value.found) == ("classes", found)
    assert raised.value.fix


def test_names_give_the_number() -> None:
    assert check_classes(["cat", "dog"], None) == (2, ("cat", "dog"))
    assert check_classes(("cat", "dog"), 2) == (2, ("cat", "dog"))
    assert check_classes(None, 2) == (2, None)
    assert check_classes(None, None, {"fc": 3}) == (None, None)
    assert check_classes(["cat", "dog"], None, {"fc": 2, "aux": 2}) == (None, ("cat", "dog"))


def test_a_number_that_disagrees_with_the_names() -> None:
    with pytest.raises(ArgumentError) as raised:
        check_classes(["cat", "dog"], 3)
    assert str(raised.value) == (
        "the number of classes and their names disagree\n"
        "  where: num_classes, classes\n"
        "  expected: 2 classes, one for each name\n"
        "  found: 3\n"
        "  next: leave num_classes out: the names give it"
    )


def test_no_number_at_all() -> None:
    with pytest.raises(ArgumentError) as raised:
        surgery.replace_head(Headed())
    assert str(raised.value) == (
        "how many classes?\n"
        "  where: num_classes\n"
        "  expected: num_classes, classes, or heads={address: number}\n"
        "  found: none of them\n"
        "  next: surgery.replace_head(model, 7)"
    )


def test_one_number_for_all_beside_one_for_each() -> None:
    with pytest.raises(ArgumentError) as raised:
        surgery.replace_head(Headed(), 3, heads={"fc": 4})
    assert str(raised.value) == (
        "heads gives a number for each head, so there is none for all\n"
        "  where: num_classes, heads\n"
        "  expected: one of the two\n"
        "  found: num_classes=3, heads={'fc': 4}\n"
        "  next: surgery.replace_head(model, heads={'fc': 4})"
    )


def test_names_beside_other_numbers() -> None:
    with pytest.raises(ArgumentError) as raised:
        surgery.replace_head(Headed(), classes=["cat", "dog"], heads={"fc": 2, "aux": 4})
    assert raised.value.where == "classes, heads"
    assert raised.value.found == "{'aux': 4}"


def test_heads_by_address_alias_and_enclosing_module() -> None:
    assert chosen("heads.mood") == {"heads.mood": 7}
    assert chosen("alias") == {"heads.age": 7}
    assert chosen("deep") == {"deep.2": 7}
    assert chosen("deep.2") == {"deep.2": 7}
    assert chosen("heads") == {"heads.age": 7, "heads.mood": 7}
    assert chosen(["alias", "heads.age", "deep"]) == {"heads.age": 7, "deep.2": 7}
    assert chosen(("deep",)) == {"deep.2": 7}
    assert chosen({"deep"}) == {"deep.2": 7}
    assert chosen(iter(["deep"])) == {"deep.2": 7}


def test_heads_with_numbers() -> None:
    assert chosen({"alias": 2, "deep": 9}, None) == {"heads.age": 2, "deep.2": 9}
    assert chosen({"heads": 6}, None) == {"heads.age": 6, "heads.mood": 6}
    assert chosen({"alias": 2, "heads.age": 2}, None) == {"heads.age": 2}


def test_a_head_that_was_asked_for_is_corroborated_by_the_caller() -> None:
    heads = find_heads(Tasks(), vectors()())
    [(head, _)] = choose(heads, "deep", 7, "replace_head")
    assert head.corroborated
    assert [(e.source, e.says) for e in head.evidence][1:] == [("caller", "heads='deep'")]


@pytest.mark.parametrize(
    "wanted", [[], (), {}, 5, 2.5, ["deep", 3], {3: 4}, [["deep"]], {None: 3}, object]
)
def test_what_names_no_layer(wanted: Any) -> None:
    with pytest.raises(ArgumentError, match="heads names the layers") as raised:
        chosen(wanted, None if isinstance(wanted, dict) else 7)
    assert (raised.value.where, raised.value.found) == ("heads", repr(wanted))
    assert raised.value.fix == "heads='heads.age'"


@pytest.mark.parametrize("wanted", ["nope", "", "trunk", "trunk.0", "deep.2.weight", "dee"])
def test_an_address_without_a_head(wanted: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        chosen(wanted)
    assert str(raised.value) == (
        "the graph shows no head there\n"
        f"  where: heads={wanted!r}\n"
        "  expected: one of: 'heads.age', 'heads.mood', 'deep.2'\n"
        f"  found: {wanted!r}\n"
        f"  next: surgery.replace(model, {{{wanted!r}: module}}) changes any layer, head or not"
    )


def test_an_address_in_a_model_that_has_no_head() -> None:
    with pytest.raises(ArgumentError, match="no head there") as raised:
        surgery.replace_head(nn.Sequential(nn.ReLU()), 7, heads="0", example=vectors()())
    assert str(raised.value.expected).startswith("no head at all: output is made without any layer")


@pytest.mark.parametrize("wrong", [0, True, "7", None, 2.0])
def test_a_number_in_heads_is_checked_like_any_other(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="whole number of at least 1") as raised:
        chosen({"deep": wrong}, None)
    assert raised.value.where == "heads['deep']"
    assert raised.value.fix == "heads={'deep': 7}"


def test_one_head_asked_for_twice_with_different_numbers() -> None:
    with pytest.raises(ArgumentError) as raised:
        chosen({"alias": 2, "heads": 3}, None)
    assert str(raised.value) == (
        "one head is asked for twice, with different numbers of classes\n"
        "  where: heads['alias'], heads['heads']\n"
        "  expected: one number for 'heads.age'\n"
        "  found: 2 and 3\n"
        "  next: heads={'heads.age': 3}"
    )


def test_taking_heads_out_needs_no_numbers() -> None:
    assert chosen(["deep"], None, "remove_head") == {"deep.2": None}
    with pytest.raises(ArgumentError, match="gives them no number") as raised:
        chosen({"deep": 3}, None, "remove_head")
    assert raised.value.fix == "surgery.remove_head(model, heads=['deep'])"


def test_several_sizes_and_nothing_that_decides() -> None:
    with pytest.raises(AmbiguousHeadError) as raised:
        surgery.replace_head(Tasks(), 7, example=vectors()())
    assert str(raised.value) == (
        "several layers could be the head, and nothing decides between them\n"
        "  where: the outputs of the model\n"
        "  expected: one number of classes in every output, or something that says which layer "
        "it is\n"
        "  found: heads.age: linear, 3 features, makes output[0]\n"
        "    heads.mood: linear, 4 features, makes output[1]\n"
        "    deep.2: linear, 3 features, makes output[2]\n"
        "  next: surgery.replace_head(model, ..., heads='heads.age') or heads={'heads.age': 7, ...}"
    )
    with pytest.raises(AmbiguousHeadError) as raised:
        surgery.remove_head(Tasks(), example=vectors()())
    assert raised.value.fix == "surgery.remove_head(model, ..., heads='heads.age')"


def test_one_size_is_taken_with_one_warning_that_says_what_is_missing() -> None:
    model = Tasks((3, 3, 3))
    with pytest.warns(UncorroboratedWarning) as caught:
        surgery.replace_head(model, 7, example=vectors()())
    assert [out.shape for out in model(vectors()())] == [(2, 7)] * 3
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "no attribute such as num_classes gives 3" in text
    assert text.startswith("'heads.age', 'heads.mood', 'deep.2' are taken for the heads")
    assert text.endswith("heads=['heads.age', 'heads.mood', 'deep.2']")
    assert caught[0].filename == __file__


def test_corroborated_heads_are_taken_alone_and_without_a_warning() -> None:
    model = Tasks((3, 5, 3))
    model.num_classes = 3
    outcome = surgery.replace_head(model, 7, example=vectors()())
    assert [out.shape[1] for out in model(vectors()())] == [7, 5, 7]
    assert outcome.plan.notes == ("heads.mood (5 classes) keeps its classes",)


def test_one_class_more_elsewhere_may_be_the_head_that_a_number_means() -> None:
    model = Tasks((3, 4, 3))
    model.num_classes = 3
    with pytest.raises(AmbiguousHeadError):
        surgery.replace_head(model, 7, example=vectors()())
    surgery.replace_head(model, 7, heads=["heads.age", "deep.2"], example=vectors()())


def test_no_head_says_what_the_model_ends_in() -> None:
    with pytest.raises(NoHeadError) as raised:
        surgery.replace_head(nn.Sequential(nn.Flatten()), 7, example=torch.zeros(2, 3))
    assert str(raised.value) == (
        "no layer of this model makes a class output\n"
        "  where: the outputs of the model\n"
        "  expected: an output whose axis is made by one layer\n"
        "  found: output is made without any layer that mixes features\n"
        "  next: surgery.replace_head(model, 7, attach=True)"
    )
