"""What the commands that write have in common: a recipe is made, carried out, shown and kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from surgery.cli import complaints, options, plugged, show, targets
from surgery.errors import ExpectationError

if TYPE_CHECKING:
    from surgery.recipes import Recipe, Step

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE: Any = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Writing:
    """Where to, and how.

    Attributes:
        output: the file to write.
        save_recipe: the recipe to write beside it.
        overwrite: replace files that are there.
        dry_run: write nothing.
        as_json: show JSON.
        html: also show it as this page.
    """

    output: Path | None
    overwrite: bool
    dry_run: bool
    as_json: bool
    html: Path | None
    save_recipe: Path | None = None


@dataclass(frozen=True)
class Start:
    """How TARGET is built, and what randomness begins with.

    Attributes:
        saved_with: for a file, what makes its model.
        given: further arguments for it.
        seed: of everything that is drawn.
    """

    saved_with: str | None
    given: Mapping[str, Any]
    seed: int


def output(function: _F) -> _F:
    """``-o``, ``--overwrite``, ``--dry-run`` and how to show it, as ``writing: Writing``."""

    @wraps(function)
    def collected(
        *args: Any,
        output: Path | None,
        overwrite: bool,
        dry_run: bool,
        as_json: bool,
        html: Path | None,
        save_recipe: Path | None = None,
        **rest: Any,
    ) -> Any:
        writing = Writing(output, overwrite, dry_run, as_json, html, save_recipe)
        return function(*args, writing=writing, **rest)

    for decorator in (
        options.html,
        options.json,
        click.option("--overwrite", is_flag=True, help="Replace files that are there."),
        click.option("--dry-run", is_flag=True, help="Do it in memory, and write nothing."),
        click.option(
            "-o", "--output", type=_FILE, metavar="FILE", help="The safetensors file to write."
        ),
    ):
        collected = decorator(collected)
    return cast(_F, collected)


def recipe(function: _F) -> _F:
    """``--target``, ``--option``, ``--seed``, as ``start: Start``; and ``--save-recipe``."""

    @wraps(function)
    def collected(
        *args: Any, saved_with: str | None, given: Mapping[str, Any], seed: int, **rest: Any
    ) -> Any:
        return function(*args, start=Start(saved_with, given, seed), **rest)

    kept = "Write this command as a recipe, for surgery apply."
    file = "For a file: what makes its model, where the file does not say so."
    drawn = "Of everything that is drawn at random."
    whole = click.IntRange(0, 2**63 - 1)
    for decorator in (
        click.option("--save-recipe", type=_FILE, metavar="FILE", help=kept),
        click.option("--seed", type=whole, default=0, show_default=True, metavar="N", help=drawn),
        options.arguments,
        click.option("--target", "saved_with", metavar="NAME", help=file),
    ):
        collected = decorator(collected)
    return cast(_F, collected)


def made(target: str, steps: Iterable[Step], start: Start, writing: Writing, **more: Any) -> Recipe:
    """The recipe that a command line stands for.

    Args:
        target: TARGET.
        steps: what to do with it.
        start: how it is built.
        writing: where to.
        more: further parts of a recipe.
    """
    from surgery.recipes import Recipe

    output = None if writing.output is None else str(writing.output)
    of_file = start.saved_with is not None
    return Recipe(
        start.saved_with if start.saved_with is not None else target,
        tuple(steps),
        restore=target if of_file else None,
        options=start.given,
        seed=start.seed,
        output=output,
        **more,
    )


def carry_out(recipe: Recipe, writing: Writing) -> None:
    """Run a recipe as a command: show progress and the outcome, and end with 1 where it must.

    Raises:
        SurgeryError: what went wrong; nothing was written then.
    """
    from surgery.recipes.runner import run

    targets.find_modules_here()
    if writing.output is None and recipe.output is None and not writing.dry_run:
        raise click.UsageError("say where to write: -o FILE, or --dry-run to write nothing")
    kept = writing.save_recipe
    if kept is not None:
        _check_free(kept, writing)
        recipe = rebased(recipe, kept)
    try:
        with progress() as told:
            ran = run(
                recipe,
                output=writing.output,
                overwrite=writing.overwrite,
                dry_run=writing.dry_run,
                progress=told,
                registry=plugged.registry(),
            )
    except ExpectationError as error:
        complaints.say(error, writing.as_json)
        click.get_current_context().exit(1)
    if kept is not None and not writing.dry_run:
        from surgery.recipes import recipe_text

        show.write(kept, recipe_text(recipe))
    show.show(ran, writing.as_json, writing.html)


def _check_free(kept: Path, writing: Writing) -> None:
    """Refuse a place for the recipe before anything is done."""
    from surgery.weights.destination import check_destination

    check_destination(kept, writing.overwrite)
    if writing.output is not None and kept.resolve() == writing.output.resolve():
        raise click.UsageError("the model and its recipe are two files")


def rebased(recipe: Recipe, file: Path) -> Recipe:
    """A recipe with its paths as they are from where it is going to lie.

    Args:
        recipe: with paths from the current directory.
        file: where it is going to be written.
    """
    from dataclasses import replace

    from surgery.recipes.recipe import Step
    from surgery.recipes.sources import is_file

    folder = os.path.dirname(file)  # noqa: PTH120 (Path would make '.' of '')

    def moved(path: str) -> str:
        if not folder or Path(path).is_absolute():
            return path
        real = Path(path).parent.resolve() / Path(path).name
        return Path(os.path.relpath(real, Path(folder).resolve())).as_posix()

    def if_file(name: str) -> str:
        return moved(name) if is_file(recipe, name) or Path(name).is_dir() else name

    def step_moved(step: Any) -> Any:
        if not isinstance(step, Step):
            return step
        arguments = dict(step.arguments)
        if "source" in arguments:
            arguments["source"] = moved(arguments["source"])
        if isinstance(arguments.get("rename"), str):
            arguments["rename"] = moved(arguments["rename"])
        donor = arguments.get("donor")
        if isinstance(donor, str):
            arguments["donor"] = if_file(donor)
        elif donor is not None:
            paths = {name: moved(donor[name]) for name in ("weights",) if name in donor}
            arguments["donor"] = {**donor, "target": if_file(donor["target"]), **paths}
        return replace(step, arguments=arguments)

    return replace(
        recipe,
        target=if_file(recipe.target),
        restore=recipe.restore and moved(recipe.restore),
        weights=recipe.weights and moved(recipe.weights),
        output=recipe.output and moved(recipe.output),
        steps=tuple(map(step_moved, recipe.steps)),
        folder=str(folder),
    )


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on stderr, where somebody is looking; it is gone when the work is done."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def told(what: str, done: int, total: int) -> None:
            bar.update(task, description=complaints.clean(what), completed=done, total=total)

        yield told
