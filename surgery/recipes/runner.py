"""Carry out a recipe: build, change, check, save. Always the same bytes from the same recipe."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from surgery.errors import ExpectationError, RecipeError, SurgeryError, WeightsError
from surgery.families.registry import Registry, in_force
from surgery.operations import made
from surgery.operations.backbone import remove_head
from surgery.operations.correspondence_file import read_correspondence
from surgery.operations.freezing import freeze, unfreeze
from surgery.operations.head import replace_head
from surgery.operations.input import adapt_input
from surgery.operations.keypoints import replace_keypoints
from surgery.operations.load import load_weights
from surgery.operations.plan import Check, Outcome
from surgery.operations.record import Origin
from surgery.operations.save import Saved, save
from surgery.operations.transplant import transplant
from surgery.recipes.expression import answer, parse
from surgery.recipes.facts import Facts
from surgery.recipes.files import check_recipe
from surgery.recipes.recipe import EXPECT, Expectation, Recipe, Step, as_data
from surgery.recipes.sources import (
    Beginning,
    begin,
    check_options,
    donor_of,
    example_of,
    located,
)
from surgery.shown import Shown
from surgery.weights.destination import check_destination
from surgery.weights.verdicts import Matching

VERBS: Mapping[str, Callable[..., Outcome]] = {
    "replace_head": replace_head,
    "replace_keypoints": replace_keypoints,
    "remove_head": remove_head,
    "adapt_input": adapt_input,
    "freeze": freeze,
    "unfreeze": unfreeze,
    "load_weights": load_weights,
    "transplant": transplant,
}

# What torch.load is handed, and would not read.
_OTHERS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")

# What is about to be done, how much is done already, and how much there is to do.
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Ran(Shown):
    """What a recipe did.

    Attributes:
        recipe: the recipe.
        model: the model, as it was saved.
        outcomes: how it was built, and what each step did.
        expectations: what was expected, and what was found.
        saved: what was written; None for a dry run and where no output was named.
        dry: whether it was a dry run.
    """

    recipe: Recipe
    model: nn.Module
    outcomes: tuple[Outcome, ...]
    expectations: tuple[Check, ...]
    saved: Saved | None = None
    dry: bool = False


def run(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Ran:
    """Carry out a recipe.

    All that can be seen to be wrong is found first: in what the recipe says, the files it names
    and the place it writes to. Then the target is built, the steps are taken in order, and the
    model is saved. Whatever fails on the way, nothing is written.

    Everything random is drawn from the recipe's seed, and the generators of the process are
    afterwards as before: the same recipe on the same files gives the same bytes.

    Args:
        recipe: what to do. What it names is imported and called, as in Python.
        output: the file to write, in place of the recipe's own, from the current directory.
        overwrite: replace a file that is there.
        dry_run: do everything in memory, and write nothing.
        progress: called before each part with what it is, how many are done and how many there
            are; and once at the end.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The model, the outcome of every step, what was expected and found, and what was written.

    Raises:
        RecipeError: the recipe says what cannot be done.
        ExpectationError: what it expects does not hold. Nothing was written.
        SurgeryError: a step failed; ``where`` begins with its line.

    Example:
        >>> from surgery.recipes.files import parse_recipe
        >>> recipe = parse_recipe('''
        ... target: torch.nn:Linear
        ... options: {in_features: 8, out_features: 5}
        ... steps:
        ... - replace_head: {num_classes: 3, heads: ""}
        ... - expect: parameters == 27 and output_shape[1] == 3
        ... ''')
        >>> ran = run(recipe)
        >>> ran.model, str(ran.expectations[0])
        (Linear(in_features=8, out_features=3, bias=True), 'ok  parameters == 27 and ...')
    """
    check_recipe(recipe)
    check_options(recipe.options, f"{recipe.name or 'recipe'}: options")
    registry = in_force(registry)
    to = output if output is not None else recipe.output and located(recipe, recipe.output)
    if to is not None:
        _check_output(to, overwrite)
    with _seeded(recipe.seed):
        work = _Work(recipe, registry, progress or (lambda what, done, total: None))
        work.prepare()
        work.carry_out()
        saved = None
        if to is not None and not dry_run:
            work.tell(f"write {to}")
            saved = save(work.model, to, target=work.origin, overwrite=overwrite)
    work.tell("done")
    return Ran(recipe, work.model, tuple(work.outcomes), tuple(work.expectations), saved, dry_run)


class _Work:
    """A recipe under way."""

    def __init__(self, recipe: Recipe, registry: Registry, progress: Progress) -> None:
        self.recipe, self.registry, self.progress = recipe, registry, progress
        self.done = 0
        self.example = example_of(recipe.example)
        self.outcomes: list[Outcome] = []
        self.expectations: list[Check] = []
        self.matching: Matching | None = None
        self.calls: dict[int, Callable[[nn.Module], Outcome]] = {}

    @property
    def model(self) -> nn.Module:
        return self.outcomes[-1].model

    @property
    def origin(self) -> Origin:
        """What the file is to remember; where it lies itself is none of its business."""
        said = {name: value for name, value in as_data(self.recipe).items() if name != "output"}
        return Origin(self.beginning.target, self.beginning.options, said)

    def tell(self, what: str) -> None:
        """Say what is next."""
        total = len(self.recipe.steps) + 2
        self.progress(what, min(self.done, total), total)
        self.done += 1

    def prepare(self) -> None:
        """Find what the recipe names, before anything is built."""
        self.beginning: Beginning = begin(self.recipe, self.registry)
        for number, entry in enumerate(self.recipe.steps):
            if isinstance(entry, Step):
                with _at(entry.place or entry.verb):
                    self.calls[number] = self._call(entry)

    def _call(self, step: Step) -> Callable[[nn.Module], Outcome]:
        """What a step is going to do with a model."""
        arguments = dict(step.arguments)
        given = arguments.pop("example", None)
        verb = partial(VERBS[step.verb], registry=self.registry)
        if step.verb == "transplant":
            donor = donor_of(self.recipe, arguments.pop("donor"), self.registry)
            arguments |= {} if given is None else {"example": example_of(given)}
            if "recipient_example" in arguments:
                arguments["recipient_example"] = example_of(arguments["recipient_example"])
            return lambda model: verb(donor(), model, **arguments)
        if step.verb == "load_weights":
            arguments["source"] = located(self.recipe, arguments["source"], must_exist=True)
            if isinstance(arguments.get("rename"), str):
                what = "a file that surgery align --json wrote"
                file = located(self.recipe, arguments["rename"], must_exist=True, what=what)
                arguments["rename"] = read_correspondence(file)
            return lambda model: verb(model, **arguments)

        def call(model: nn.Module) -> Outcome:
            if given is not None:
                self.example = example_of(given)
            example, self.example = (
                self.example,
                None if step.verb == "adapt_input" else self.example,
            )
            return verb(model, example=example, **arguments)

        return call

    def carry_out(self) -> None:
        """Build the model, take the steps, and look whether what is expected holds."""
        self.tell(f"build {self.recipe.target}")
        self.outcomes.append(self.beginning.make())
        self._retitle(self.recipe.restore or self.recipe.target)
        for number, entry in enumerate(self.recipe.steps):
            with _at(entry.place or getattr(entry, "verb", EXPECT)):
                if isinstance(entry, Expectation):
                    self.tell(f"expect {entry.text}")
                    self._expect(entry)
                    continue
                self.tell(entry.verb)
                outcome = self.calls[number](self.model)
                # The model began here: nobody wants a step of it back, and it would keep memory.
                outcome.commit()
                self.outcomes.append(outcome)
                self.matching = outcome.plan.matching or self.matching
                source = entry.arguments.get("source", entry.arguments.get("donor"))
                self._retitle(source)

    def _retitle(self, source: Any) -> None:
        """Name a file in what is remembered as the recipe does, wherever it was run from."""
        if isinstance(source, str) and located(self.recipe, source) != source:
            made.retitle(self.model, located(self.recipe, source), source)

    def _expect(self, expected: Expectation) -> None:
        facts = Facts(self.model, self.example, self.matching, self.registry)
        found = answer(parse(expected.text), facts)
        if not found.holds:
            raise ExpectationError(
                "this does not hold",
                expected=expected.text,
                found=str(found) or "it never does",
                fix="change the steps, or what is expected; nothing was written",
            )
        self.expectations.append(Check(expected.text, True, str(found)))


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Let errors say which line of the recipe they come from."""
    try:
        yield
    except SurgeryError as error:
        error.where = f"{place}: {error.where}" if error.where else place
        raise


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw everything from a seed, and leave no trace of it."""
    state = random.getstate()
    # Nothing is drawn anywhere but on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def _check_output(path: str | os.PathLike[str], overwrite: bool) -> None:
    name, suffix = os.path.splitext(os.path.basename(path))  # noqa: PTH119, PTH122
    if suffix in _OTHERS:
        raise RecipeError(
            "a safetensors file is written, and this name says that it is another",
            where=os.fspath(path),
            expected="a name that ends in .safetensors",
            found=suffix,
            fix=f"output={name + '.safetensors'!r}",
        )
    try:
        check_destination(path, overwrite)
    except WeightsError as error:
        more = ", overwrite=True" if "overwrite" in str(error.expected) else ""
        if more or str(error.fix).startswith("surgery.save"):
            name = os.fspath(path) if more else os.path.join(path, "model.safetensors")  # noqa: PTH118
            error.fix = f"surgery.recipes.run(recipe, output={name!r}{more})"
        raise
