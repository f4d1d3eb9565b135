"""What is written is what is read, by us and by others."""

from __future__ import annotations

from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import ArgumentError, RecipeError
from surgery.recipes import Expectation, Recipe, Step, parse_recipe, recipe_text
from surgery.recipes.document import parse_yaml
from surgery.recipes.files import check_recipe
from surgery.recipes.recipe import as_data
from surgery.recipes.validation import problems_in
from tests.strategies import recipes


@settings(max_examples=40)
@given(recipes())
def test_a_recipe_that_is_written_is_read_again(recipe: Recipe):
    check_recipe(recipe)
    again = parse_recipe(recipe_text(recipe))
    assert again == recipe
    assert recipe_text(again) == recipe_text(recipe)


@settings(max_examples=40)
@given(recipes())
def test_others_read_the_same_in_what_is_written(recipe: Recipe):
    text = recipe_text(recipe)
    assert yaml.safe_load(text) == as_data(recipe)
    # Places are all that tell the two apart.
    assert parse_yaml(text, "r").value == yaml.safe_load(text)


@settings(max_examples=40)
@given(recipes())
def test_every_value_has_its_place(recipe: Recipe):
    document = parse_yaml(recipe_text(recipe), "r.yaml")
    lines = recipe_text(recipe).splitlines()

    def look(value: object, path: tuple[str | int, ...]) -> None:
        line, column = document.places[path]
        assert 1 <= line <= len(lines)
        assert column <= len(lines[line - 1]) + 1
        items = value.items() if isinstance(value, dict) else ()
        for key, inner in [*items, *(enumerate(value) if isinstance(value, list) else ())]:
            look(inner, (*path, key))

    look(document.value, ())


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str):
    with suppress(RecipeError):
        parse_recipe(text)


@given(st.text(alphabet="{}[]:,&*!|>-'\"#%@ \nab01.", max_size=40))
def test_any_text_of_signs_is_a_recipe_or_a_recipe_error(text: str):
    with pytest.raises(RecipeError):
        parse_recipe(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["target", "steps", "expect", "freeze", "replace_head", "heads", "keep"]
            )
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_data_has_problems_with_a_place_or_none(data: object):
    for problem in problems_in(data, lambda path: "/".join(map(str, path))):
        assert problem.what
        assert problem.expected
        assert problem.fix


def test_what_is_expected_at_the_end_comes_last():
    text = "target: a:b\nexpect: [parameters > 1, frozen == 0]\nsteps:\n- expect: trainable > 1\n"
    found = [entry.text for entry in parse_recipe(text).steps if isinstance(entry, Expectation)]
    assert found == ["trainable > 1", "parameters > 1", "frozen == 0"]


def test_a_verb_without_arguments_needs_no_braces():
    assert parse_recipe("target: a:b\nsteps:\n- unfreeze:\n").steps == (Step("unfreeze"),)


@pytest.mark.parametrize(
    "value", [print, {1, 2}, b"x", 1j], ids=["code", "set", "bytes", "complex"]
)
def test_what_no_file_could_hold_is_refused(value: object):
    with pytest.raises(ArgumentError, match="plain data"):
        Step("freeze", {"patterns": value})


def test_what_contains_itself_is_refused():
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ArgumentError, match="plain data"):
        Step("freeze", {"patterns": endless})
