"""All that is wrong in a recipe, found before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema

from surgery.errors import RecipeError
from surgery.recipes.document import AT_KEY, Path, Problem
from surgery.recipes.expression import parse
from surgery.recipes.recipe import EXPECT
from surgery.weights.brief import brief

SCHEMA = "recipe.schema.json"
Place = Callable[[Iterable[str | int]], str]


@cache
def schema() -> Mapping[str, Any]:
    """The published schema of recipes.

    Example:
        >>> schema()["$id"]
        'surgery/recipe/1'
    """
    text = files("surgery.recipes").joinpath(SCHEMA).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def verbs() -> Mapping[str, Mapping[str, Any]]:
    """For each verb that a step may name, what the schema says of its arguments."""
    found: dict[str, Mapping[str, Any]] = dict(schema()["$defs"]["step"]["properties"])
    del found[EXPECT]
    return found


def problems_in(data: object, place: Place) -> list[Problem]:
    """Compare a recipe with the schema, and parse what it expects.

    Args:
        data: what the file holds.
        place: where each part of it is, by its path.

    Example:
        >>> found = problems_in({"target": "a:b", "steps": [{"freese": {}}]}, lambda path: "r:1:1")
        >>> print(found[0])
        r:1:1: there is no verb 'freese' (expected freeze; found freese)
    """
    found: list[Problem] = []
    for error in _validator().iter_errors(data):
        found += _problems(error, place)
    found += _expectations(data, place)
    return found


@cache
def _validator() -> Any:
    base: Any = jsonschema.Draft202012Validator
    whole = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    formats = jsonschema.FormatChecker(formats=())
    formats.checks("regex", raises=re.error)(_is_regex)
    extend: Any = jsonschema.validators.extend
    return extend(base, type_checker=whole)(schema(), format_checker=formats)


def _is_regex(value: object) -> bool:
    return not isinstance(value, str) or re.compile(value) is not None


def _problems(error: Any, place: Place) -> Iterator[Problem]:
    """What one error of the schema means to a person."""
    path: Path = tuple(error.absolute_path)
    rule = error.validator
    if rule == "additionalProperties" and error.validator_value is False:
        yield from _unknown(error, path, place)
    elif rule == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        description = error.schema.get("properties", {}).get(missing, {}).get("description", "")
        yield Problem(
            place(path),
            f"{_owner(path)} has no {missing!r}",
            f"{missing}: {description}".rstrip(": "),
            ", ".join(map(str, error.instance)) or "nothing",
            f"add {missing!r}",
        )
    elif rule in ("minProperties", "maxProperties"):
        yield Problem(
            place(path),
            "a step is one verb" if path[:1] == ("steps",) else "this is empty or too much",
            _expected(error),
            ", ".join(map(str, error.instance)) or "nothing",
            "begin each step with '- '",
        )
    elif rule == "anyOf" and _needs(error):
        needed = " or ".join(_needs(error))
        yield Problem(
            place(path),
            f"{_owner(path)} says nothing of what it is for",
            needed,
            ", ".join(map(str, error.instance)) or "nothing",
            f"add {needed}",
        )
    else:
        deeper = _deeper(error) if rule == "anyOf" else None
        if deeper is not None:
            yield from _problems(deeper, place)
            return
        if "propertyNames" in error.schema_path:
            path = (*path, error.instance, AT_KEY)
        yield Problem(
            place(path),
            f"{_owner(path)} is not what it should be",
            _expected(error),
            brief(error.instance),
            "surgery apply --help shows a recipe",
        )


def _needs(error: Any) -> list[str]:
    """The arguments of which one has to be there."""
    return [name for each in error.validator_value for name in each.get("required", ())][
        : len(error.validator_value) if "properties" in error.schema else 0
    ]


def _deeper(error: Any) -> Any:
    """The error inside the one alternative that has the form of what is there."""
    context, here = error.context or (), len(error.absolute_path)
    inside = [each for each in context if len(each.absolute_path) > here]
    form = [each for each in context if each.validator not in ("type", "enum", "const")]
    found = inside or form
    return found[0] if len(found) == 1 else None


def _expected(error: Any) -> str:
    parent = error
    while parent is not None:
        description = parent.schema.get("description") if isinstance(parent.schema, dict) else None
        if description:
            return str(description)
        parent = parent.parent
    return str(error.message)


def _owner(path: Path) -> str:
    """What a path leads to, in words."""
    names = [part for part in path if isinstance(part, str) and part not in ("steps", AT_KEY)]
    if not names:
        return f"step {int(path[1]) + 1}" if len(path) > 1 else "the recipe"
    return " of ".join(map(repr, reversed(names[-2:])))


def _unknown(error: Any, path: Path, place: Place) -> Iterator[Problem]:
    known = list(error.schema["properties"])
    for name in error.instance:
        if name in known:
            continue
        close = get_close_matches(str(name), known, n=1)
        what = (
            f"there is no verb {name!r}"
            if "expect" in known and path[:1] == ("steps",)
            else f"{_owner(path)} has no {name!r}"
        )
        yield Problem(
            place((*path, name, AT_KEY)),
            what,
            close[0] if close else ", ".join(known),
            brief(name).strip("'"),
            f"write {close[0]!r}" if close else f"remove {name!r}",
        )


def _expectations(data: object, place: Place) -> Iterator[Problem]:
    """Problems in what is expected, wherever it stands."""
    if not isinstance(data, dict):
        return
    found: list[tuple[Path, object]] = []
    steps = data.get("steps")
    for number, step in enumerate(steps if isinstance(steps, list) else []):
        if isinstance(step, dict) and EXPECT in step:
            found.append((("steps", number, EXPECT), step[EXPECT]))
    last = data.get(EXPECT)
    if isinstance(last, list):
        found += [((EXPECT, number), text) for number, text in enumerate(last)]
    elif last is not None:
        found.append(((EXPECT,), last))
    for path, text in found:
        if isinstance(text, str) and text:
            try:
                parse(text)
            except RecipeError as error:
                said = (str(error.expected), str(error.found), error.fix or "")
                yield Problem(place(path), error.what, *said)
