"""The published schema says of the verbs what is so."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import jsonschema
import pytest

import surgery
from surgery.operations.build import build
from surgery.operations.freezing import Norm
from surgery.operations.normalisation import How
from surgery.operations.values import Init
from surgery.recipes.recipe import Recipe
from surgery.recipes.runner import VERBS
from surgery.recipes.validation import schema, verbs
from surgery.weights.policies import POLICIES

# What no file can say, or what is for the whole recipe to say.
NOT_IN_FILES = {"model", "recipient", "generator", "dry_run", "registry"}
# What is left out of single verbs: how tensors are held matters in memory, and not in a file.
LEFT_OUT = {"load_weights": {"assign", "mmap"}, "transplant": {"how"}}
# Everything at the door that changes a model; modules are no plain data.
CHANGING = {"replace"}


def parameters(verb: str) -> Mapping[str, inspect.Parameter]:
    found = inspect.signature(VERBS[verb]).parameters
    left_out = NOT_IN_FILES | LEFT_OUT.get(verb, set())
    assert LEFT_OUT.get(verb, set()) <= set(found)
    return {name: parameter for name, parameter in found.items() if name not in left_out}


def resolved(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = schema()
    for name in part.get("$ref", "#").split("/")[1:]:
        found = found[name]
    return {**found, **part} if "$ref" in part else part


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_every_changing_verb_at_the_door_is_a_step():
    changing = {
        name
        for name in surgery.__all__
        if inspect.isfunction(verb := getattr(surgery, name))
        and {"dry_run", "registry"} <= set(inspect.signature(verb).parameters)
        and name != "restore"
    }
    assert set(verbs()) == set(VERBS) == changing - CHANGING
    assert all(VERBS[name] is getattr(surgery, name) for name in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_step_takes_exactly_what_its_verb_takes(verb: str):
    assert set(verbs()[verb]["properties"]) == set(parameters(verb))
    needed = {n for n, p in parameters(verb).items() if p.default is inspect.Parameter.empty}
    assert set(verbs()[verb].get("required", ())) == needed


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_in_the_schema_are_those_of_the_verb(verb: str):
    for name, part in verbs()[verb]["properties"].items():
        default = parameters(verb)[name].default
        written = list(default) if isinstance(default, tuple) else default
        if default is not None and default is not inspect.Parameter.empty:
            assert resolved(part)["default"] == written, name


@pytest.mark.parametrize(
    ("verb", "argument", "known"),
    [
        ("freeze", "norm", get_args(Norm)),
        ("adapt_input", "how", get_args(get_args(How)[0])),
        ("replace_head", "init", get_args(get_args(Init)[0])),
        ("load_weights", "on_mismatch", POLICIES),
    ],
    ids=["norm", "how", "init", "on_mismatch"],
)
def test_choices_in_the_schema_are_those_of_the_verb(verb, argument, known):
    part = resolved(verbs()[verb]["properties"][argument])
    choices = part.get("enum") or part["anyOf"][0]["enum"]
    assert set(choices) == set(known)


def test_the_parts_of_a_recipe_are_those_of_its_value():
    fields = {name for name in Recipe.__dataclass_fields__ if name not in ("name", "folder")}
    assert set(schema()["properties"]) == fields | {"expect"}


def test_what_builds_takes_what_a_recipe_hands_it():
    handed = {"num_classes", "weights", "example", "registry"}
    assert handed <= set(inspect.signature(build).parameters)


def test_every_part_says_what_it_is():
    for verb, part in verbs().items():
        for name, argument in part["properties"].items():
            assert resolved(argument).get("description"), (verb, name)
