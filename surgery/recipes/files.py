"""Recipes as files: read with every mistake and its line, and written back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from surgery.errors import RecipeError
from surgery.recipes.document import AT_KEY, LONGEST, Document, failure, parse_yaml, to_yaml
from surgery.recipes.recipe import EXPECT, Entry, Expectation, Recipe, Step, as_data
from surgery.recipes.validation import problems_in


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    r"""Read a recipe, and refuse it with all that is wrong in it. Nothing is run or imported.

    Args:
        path: a YAML file. Paths in it begin where it lies.

    Raises:
        RecipeError: it cannot be read, is no YAML, or says what no recipe can. Every problem has
            its line and column.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "r.yaml")
        ...     _ = file.write_text("target: a:b\nsteps:\n- freeze: {norm: train}\n")
        ...     read_recipe(file).steps
        (Step(verb='freeze', arguments={'norm': 'train'}, place='...r.yaml:3:3'),)
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            # One byte more than may be there tells what is too long.
            raw = file.read(4 * LONGEST + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise RecipeError(
            "this recipe cannot be read",
            where=str(name),
            expected="a text file in UTF-8",
            found=getattr(error, "strerror", None) or str(error),
            fix="surgery apply recipe.yaml",
        ) from error
    folder = os.path.dirname(name)  # noqa: PTH120 (Path would make '.' of '')
    return parse_recipe(text, str(name), folder=str(folder))


def parse_recipe(text: str, name: str = "recipe", *, folder: str = "") -> Recipe:
    r"""Understand the text of a recipe.

    Args:
        text: YAML.
        name: what to call it in errors.
        folder: where its relative paths begin.

    Raises:
        RecipeError: as for ``read_recipe``.

    Example:
        >>> parse_recipe("target: torch.nn:Identity\nexpect: parameters == 0").steps[0].text
        'parameters == 0'
    """
    document = parse_yaml(text, name)
    problems = list(document.problems)
    # What could not be read is not what it should be either, and nobody needs to hear that.
    unread = {problem.place for problem in problems}
    problems += [
        problem
        for problem in problems_in(document.value, document.place)
        if problem.place not in unread
    ]
    if problems:
        raise failure(name, problems)
    return _recipe(document, folder)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML.

    Example:
        >>> print(recipe_text(Recipe("torch.nn:Identity", (Expectation("parameters == 0"),))))
        target: torch.nn:Identity
        seed: 0
        steps:
        - {expect: parameters == 0}
        <BLANKLINE>
    """
    return to_yaml(as_data(recipe))


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that was not read from a file, if anything in it is wrong.

    Raises:
        RecipeError: all that is wrong, with the place of each in the recipe.
    """

    def place(path: Any) -> str:
        parts = (
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in path if part != AT_KEY
        )
        return f"{recipe.name or 'recipe'}{''.join(parts)}"

    problems = problems_in(as_data(recipe), place)
    if problems:
        raise failure(recipe.name, problems)


def _recipe(document: Document, folder: str) -> Recipe:
    data = dict(document.value)
    steps: list[Entry] = []
    for number, step in enumerate(data.pop("steps", ())):
        ((verb, content),) = step.items()
        place = document.place(("steps", number, verb) if verb == EXPECT else ("steps", number))
        steps.append(
            Expectation(content, place) if verb == EXPECT else Step(verb, content or {}, place)
        )
    last = data.pop(EXPECT, ())
    for number, text in enumerate([last] if isinstance(last, str) else last):
        steps.append(Expectation(text, document.place((EXPECT, number))))
    return Recipe(**data, steps=tuple(steps), name=document.name, folder=folder)
