"""What a recipe says: a target, the steps from it to a file, and what must hold on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeAlias

from surgery.errors import ArgumentError
from surgery.weights.brief import brief

EXPECT = "expect"
_DEEPEST = 32


@dataclass(frozen=True)
class Step:
    """One verb and its arguments.

    Attributes:
        verb: its name at the door, such as ``replace_head``.
        arguments: its arguments by name, as plain data: what YAML holds.
        place: where the recipe says so, ``file:line:column``.
    """

    verb: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", plain(self.arguments, self.verb))


@dataclass(frozen=True)
class Expectation:
    """Something that must hold at its place among the steps.

    Attributes:
        text: an expression, such as ``trainable_ratio < 0.1``.
        place: where the recipe says so, ``file:line:column``.
    """

    text: str
    place: str = field(default="", compare=False)


Entry: TypeAlias = Step | Expectation


@dataclass(frozen=True)
class Recipe:
    """A model that is built, changed, checked and saved: always the same one.

    Attributes:
        target: what to begin with: a catalog name, ``package.module:callable``, or a file that
            ``surgery.save`` wrote of a model from a catalog.
        steps: what to do with it, and what must hold in between, in order.
        restore: a file that ``surgery.save`` wrote of this target, from which it is made again.
        weights: a file that the target is built with.
        num_classes: how many classes the target is built with.
        options: further arguments for what builds the target.
        example: the arguments of one forward pass where they are not found out: the shape of a
            tensor, or ``{"shape": ..., "dtype": ...}``, several in a list, or by keyword. One in
            a step holds from there on; after ``adapt_input`` it is found out anew.
        seed: of everything that is drawn at random.
        output: the file to write.
        name: what the recipe is called in errors: its file.
        folder: where its relative paths begin; the current directory, if empty.
    """

    target: str
    steps: tuple[Entry, ...] = ()
    restore: str | None = None
    weights: str | None = None
    num_classes: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    example: Any = None
    seed: int = 0
    output: str | None = None
    name: str = field(default="", compare=False)
    folder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "options", plain(self.options, "options"))
        object.__setattr__(self, "example", plain(self.example, "example"))


def plain(value: Any, where: str, deep: int = _DEEPEST) -> Any:
    """A copy of plain data with lists for tuples and text for paths.

    Args:
        value: what a file could hold: None, bool, int, float, text, and lists and mappings of it.
        where: what it belongs to, for errors.
        deep: how deep it may be nested.

    Raises:
        ArgumentError: it is something else, or nested too deep.

    Example:
        >>> plain({"hidden": (64, 32)}, "replace_head")
        {'hidden': [64, 32]}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if deep > 0:
        if isinstance(value, list | tuple):
            return [plain(item, where, deep - 1) for item in value]
        if isinstance(value, Mapping):
            keys = [plain(key, where, 0) for key in value]
            items = (plain(item, where, deep - 1) for item in value.values())
            return dict(zip(keys, items, strict=True))
    raise ArgumentError(
        "a recipe holds plain data and nothing else",
        where=where,
        expected="text, numbers, true, false, null, and lists and mappings of them",
        found=f"{type(value).__name__}: {brief(value)}",
        fix="name what it stands for, or call the verb in Python",
    )


def as_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the mapping that its file holds.

    Example:
        >>> as_data(Recipe("zoo:net", (Step("freeze", {"except_": "heads"}),), seed=3))
        {'target': 'zoo:net', 'seed': 3, 'steps': [{'freeze': {'except_': 'heads'}}]}
    """
    steps: list[dict[str, Any]] = [
        {entry.verb: dict(entry.arguments)} if isinstance(entry, Step) else {EXPECT: entry.text}
        for entry in recipe.steps
    ]
    found = {
        "target": recipe.target,
        "options": dict(recipe.options),
        "restore": recipe.restore,
        "weights": recipe.weights,
        "num_classes": recipe.num_classes,
        "example": recipe.example,
        "seed": recipe.seed,
        "steps": steps,
        "output": recipe.output,
    }
    return {
        name: value
        for name, value in found.items()
        if value is not None and value != {} and value != []
    }
