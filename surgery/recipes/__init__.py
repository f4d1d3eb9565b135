"""Operations as a file: a recipe is read, checked before anything runs, and carried out."""

from surgery.recipes.files import parse_recipe, read_recipe, recipe_text
from surgery.recipes.recipe import Expectation, Recipe, Step
from surgery.recipes.runner import Ran, run

__all__ = [
    "Expectation",
    "Ran",
    "Recipe",
    "Step",
    "parse_recipe",
    "read_recipe",
    "recipe_text",
    "run",
]
