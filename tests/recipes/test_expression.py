"""What is expected is understood, answered, and never run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import RecipeError
from surgery.recipes.expression import LONGEST, answer, parse
from surgery.recipes.facts import KNOWN, Facts
from tests.recipes.models import small

TRUE = [
    "parameters == 276 and buffers == 17",
    "trainable == parameters and frozen == 0 and trainable_ratio == 1",
    "0 < parameters / 2 <= 138 and -1 < parameters % 3",
    "parameters == 1_000 or not parameters < 3",
    "num_classes == 4 and num_classes in [3, 4] and num_classes not in (5, 6)",
    'heads == {"5": 4} and heads["5"] == num_classes and "5" in heads and len(heads) == 1',
    "output_shape[1] == 4 and len(output_shape) == 2 and outputs['output'] == output_shape",
    "classes == None and loaded == None and missing == None",
    "'0.weight' in trainable_names and len(trainable_names) == 6",
    "bytes > 4 * parameters",
]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts(small(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("text", TRUE)
def test_what_is_so_holds_and_its_opposite_does_not(facts: Facts, text: str):
    assert answer(parse(text), facts).holds
    assert not answer(parse(f"not ({text})"), facts).holds


def test_every_name_is_asked_for_in_these_tests():
    asked = {name for text in TRUE for name in parse(text).names}
    assert asked | {"unexpected", "mismatched"} == set(KNOWN)


def test_what_a_load_matched_can_be_expected():
    model = nn.Linear(3, 2)
    source = {"weight": torch.zeros(2, 3), "bias": torch.zeros(5), "more": torch.zeros(1)}
    with pytest.warns(surgery.errors.PartialLoadWarning):
        outcome = surgery.load_weights(model, source, min_coverage=0.1)
    facts = Facts(model, matching=outcome.plan.matching)
    text = "loaded == ['weight'] and mismatched == ['bias'] and unexpected == ['more']"
    assert answer(parse(f"{text} and missing == []"), facts).holds


def test_an_answer_says_what_was_found(facts: Facts):
    found = answer(parse("parameters > 1_000 and trainable_ratio < 1"), facts)
    assert str(found) == "parameters is 276, trainable_ratio is 1"


def test_only_what_is_asked_for_is_found_out():
    class Unrunnable(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    assert answer(parse("parameters == 6"), Facts(Unrunnable(2, 2))).holds


@pytest.mark.parametrize(
    "text",
    ["parameters / 0 == 1", "parameters // 0 == 1", "output_shape[9] == 1", "heads['no'] == 1"],
)
def test_what_has_no_answer_is_an_error(facts: Facts, text: str):
    with pytest.raises(RecipeError, match="no answer"):
        answer(parse(text), facts)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true') == 0",
        "heads.__class__ == 1",
        "(lambda: 1)() == 1",
        "[x for x in heads] == []",
        "f'{parameters}' == '1'",
        "(parameters := 3) == 3",
        "2 ** 99 > parameters",
        "1 << 99 > parameters",
        "len(*heads) == 1",
        "len(heads, heads) == 1",
        "heads['a':'b'] == 1",
        "parameters is 3",
        "b'x' == b'x'",
        "1j == 1",
        "... == ...",
        "parameters if parameters else 3",
        "'a' * 9 == 'a'",
        "{**heads} == heads",
        "'\\d' == classes",
        "yield == 1",
    ],
)
def test_nothing_but_the_small_language_is_understood(text: str):
    with pytest.raises(RecipeError):
        parse(text)


LONG = {
    "brackets": "(" * 400 + "1" + ")" * 90,
    "not": "not " * 120 + "parameters == 1",
    "minus": "-" * 490 + "1 == 1",
    "long": "x" * (LONGEST + 1),
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_no_text_is_too_much(text: str):
    try:
        parse(text)
    except RecipeError as error:
        assert error.fix  # noqa: PT017


@given(st.text(max_size=30) | st.text("()[]{}<>=!+-*/%,.'\"0123 nothead", max_size=30))
def test_any_text_is_understood_or_a_recipe_error(text: str):
    try:
        parse(text)
    except RecipeError as error:
        assert error.fix  # noqa: PT017


numbers = st.integers(-9, 9)


@given(
    st.recursive(
        numbers.map(str),
        lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        ),
        max_leaves=6,
    ),
    numbers,
)
def test_arithmetic_is_that_of_python(text: str, other: int):
    for sign in "<", "==", ">=", "!=":
        whole = f"{text} {sign} {other}"
        assert answer(parse(whole), Facts(nn.Linear(1, 1))).holds == eval(whole)
