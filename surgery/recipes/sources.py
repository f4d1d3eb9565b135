"""What a recipe begins with and brings in: targets, files, examples; nothing is built yet."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from surgery.errors import PlanError, RecipeError
from surgery.families.catalog import Catalog
from surgery.families.registry import Registry
from surgery.operations.build import build
from surgery.operations.plan import Outcome
from surgery.operations.record import read_record
from surgery.operations.restore import restore
from surgery.operations.target import resolve_target
from surgery.recipes.document import parse_yaml
from surgery.recipes.recipe import Recipe
from surgery.weights.brief import brief
from surgery.weights.paths import is_spelt_as_path
from surgery.weights.source import read
from surgery.weights.verdicts import printable


@dataclass(frozen=True)
class Beginning:
    """How the first model comes about.

    Attributes:
        target: the name of what builds it.
        make: builds or restores it.
        options: further arguments of the target.
    """

    target: str
    make: Callable[[], Outcome]
    options: Mapping[str, Any] = field(default_factory=dict)


def located(
    recipe: Recipe,
    path: str,
    *,
    must_exist: bool = False,
    what: str = "a file or directory of weights",
) -> str:
    """Where a path of a recipe leads to: it begins at the recipe's own folder.

    Args:
        recipe: the recipe.
        path: as it is spelt there.
        must_exist: refuse a path to nothing.
        what: what must be there, in words.

    Raises:
        RecipeError: there is nothing.

    Example:
        >>> located(Recipe("a:b", folder="recipes"), "weights.pth")
        'recipes/weights.pth'
    """
    found = os.path.join(recipe.folder, path)  # noqa: PTH118 (Path would spell it otherwise)
    if must_exist and not os.path.lexists(found):
        raise RecipeError(
            "there is no such file",
            where=found,
            expected=what,
            found="nothing",
            fix="paths of a recipe begin where the recipe lies",
        )
    return found


def begin(recipe: Recipe, registry: Registry) -> Beginning:
    """Find what the first model is made of; nothing is built.

    Args:
        recipe: the recipe.
        registry: the plugins to ask.

    Raises:
        SurgeryError: there is no such target or file, or a file does not say what it is of.
    """
    if recipe.restore is not None or is_file(recipe, recipe.target):
        return _restored(recipe, registry)
    weights = recipe.weights and located(recipe, recipe.weights, must_exist=True)
    resolve_target(recipe.target, registry)
    make = partial(
        build,
        recipe.target,
        num_classes=recipe.num_classes,
        weights=weights,
        example=example_of(recipe.example),
        registry=registry,
        **recipe.options,
    )
    return Beginning(recipe.target, make, recipe.options)


def _restored(recipe: Recipe, registry: Registry) -> Beginning:
    for name in ("weights", "num_classes"):
        if getattr(recipe, name) is not None:
            raise RecipeError(
                f"a file that is restored has its own {name.replace('_', ' ')}",
                where=f"{recipe.name or 'recipe'}: {name}",
                expected="steps that change it",
                found=str(getattr(recipe, name)),
                fix="steps: [{load_weights: {source: ...}}, {replace_head: {num_classes: ...}}]",
            )
    spelt = recipe.restore if recipe.restore is not None else recipe.target
    path = located(recipe, spelt, must_exist=True)
    target, options = recipe.target, dict(recipe.options)
    if recipe.restore is None:
        target, _ = remembered(path, registry, options)
    else:
        resolve_target(target, registry)
    make = partial(restore, target, path, registry=registry, **options)
    return Beginning(target, make, options)


def remembered(
    path: str, registry: Registry, given: Mapping[str, Any] | None = None
) -> tuple[str, Mapping[str, Any]]:
    """What a file says it was built from. No file decides what is imported, or called with what.

    Args:
        path: of a file that ``surgery.save`` wrote.
        registry: the plugins whose catalogs must have the name.
        given: arguments that the user gave for what builds the model.

    Returns:
        The name, and the arguments.

    Raises:
        PlanError: it says nothing, the name is in no catalog, or there were arguments that the
            user did not give.
        WeightsError: it cannot be read.
    """
    origin = read_record(read(path, registry=registry).metadata, path).origin
    said = "" if origin is None else origin.target
    # A name alone stands for one where it is listed without being asked for.
    listed = (each.catalog for each in registry.families if not isinstance(each.catalog, Catalog))
    meant = [said for catalog in listed if said in catalog]
    if origin is None or (said not in registry.catalog_names and len(meant) != 1):
        raise PlanError(
            "this file does not say which model of a catalog it was made of",
            where=path,
            expected="a file that was made of a catalog name",
            found="no name" if origin is None else brief(origin.target),
            fix="--target package.module:callable, or in a recipe both target: and restore:",
        )
    if origin.options and not given:
        raise PlanError(
            "what this file was made of was built with arguments, and no file decides on those",
            where=path,
            expected="the arguments from you",
            found=brief(dict(origin.options)),
            fix=f"{printable(spelt(origin.options))}, or in a recipe options:",
        )
    return said, given or {}


def check_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse options that would be taken for arguments of what builds or restores.

    Args:
        options: further arguments for what builds the target.
        where: where they were given.

    Raises:
        RecipeError: one of them is an argument of ``surgery.build`` or ``surgery.restore``.
    """
    taken = {"path", "trusted", "dry_run", *inspect.signature(build).parameters} - {"options"}
    wrong = sorted(taken & set(options))
    if wrong:
        raise RecipeError(
            "options are for what builds the target, and this is no such argument",
            where=where,
            expected="arguments of the target alone",
            found=", ".join(wrong),
            fix=f"write {wrong[0]!r} beside options, where a recipe has it",
        )


def spelt(options: Mapping[str, Any]) -> str:
    """Options as a shell takes them, so that each has the value and the type that it has here.

    Example:
        >>> spelt({"width": 64, "bias": True, "act": "relu", "name": "1 2"})
        "--option width=64 --option bias=true --option act=relu --option 'name=1 2'"
    """
    return " ".join(f"--option {shlex.quote(f'{k}={_text(v)}')}" for k, v in options.items())


def _text(value: Any) -> str:
    """A value as YAML that reads as nothing else."""
    plain = isinstance(value, str) and value.isprintable() and value.strip() == value
    if plain and ":" not in value and "#" not in value:
        with suppress(RecipeError):
            if parse_yaml(value, "").value == value:
                return str(value)
    return json.dumps(value)


def is_file(recipe: Recipe, name: str) -> bool:
    """Whether a name is that of a file, or spelt like one.

    Args:
        recipe: where it stands.
        name: a target or donor.

    Example:
        >>> is_file(Recipe("a:b"), "torch.nn:Linear"), is_file(Recipe("a:b"), "changed.safetensors")
        (False, True)
    """
    return is_spelt_as_path(name) or os.path.isfile(located(recipe, name))  # noqa: PTH113


def donor_of(recipe: Recipe, donor: Any, registry: Registry) -> Callable[[], object]:
    """What layers are taken from: a checkpoint, or a model that is built when it is its turn.

    Args:
        recipe: the recipe.
        donor: a file, a name of what builds a model, or a mapping with ``target``.
        registry: the plugins to ask.

    Raises:
        SurgeryError: there is no such file or name.
    """
    if isinstance(donor, str) and (
        is_file(recipe, donor) or os.path.isdir(located(recipe, donor))  # noqa: PTH112
    ):
        path = located(recipe, donor, must_exist=True)
        return lambda: path
    given = {"target": donor} if isinstance(donor, str) else dict(donor)
    other = Recipe(**given, name=recipe.name, folder=recipe.folder)
    beginning = begin(other, registry)
    return lambda: beginning.make().model


def example_of(example: Any) -> Any:
    """The arguments that an example in a recipe describes; floating ones are on meta.

    Args:
        example: a shape, ``{"shape": ..., "dtype": ...}``, a list of them, or them by keyword.

    Example:
        >>> example_of([1, 3, 8, 8]).shape, sorted(example_of({"ids": {"shape": [2, 4]}}))
        (torch.Size([1, 3, 8, 8]), ['ids'])
    """
    if example is None:
        return None
    if _is_tensor(example):
        return _tensor(example)
    if isinstance(example, list):
        return tuple(map(_tensor, example))
    return {name: _tensor(value) for name, value in example.items()}


def _is_tensor(example: Any) -> bool:
    if isinstance(example, dict):
        return "shape" in example
    return all(isinstance(size, int) for size in example)


def _tensor(example: Any) -> torch.Tensor:
    known = example if isinstance(example, dict) else {"shape": example}
    dtype: torch.dtype = getattr(torch, known.get("dtype", "float32"))
    # Numbers of a text, masks and positions are looked at while a model is recorded.
    device = "meta" if dtype.is_floating_point else "cpu"
    return torch.zeros(known["shape"], dtype=dtype, device=device)
