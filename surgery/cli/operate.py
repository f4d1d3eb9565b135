"""``surgery operate``: another head, other inputs, frozen layers, in one go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgery.cli import options, plugged, running, targets

if TYPE_CHECKING:
    from surgery.recipes import Step

ALL_BUT_HEADS = "all-but-heads"


@click.command()
@options.target
@options.num_classes
@click.option("--classes", metavar="A,B,...", help="Names of the classes, or @FILE, one a line.")
@options.weights
@click.option("--keep", multiple=True, metavar="NEW=OLD", help="A class that stays; or all.")
@click.option("--old-classes", metavar="A,B,...", help="Names of the present classes, or @FILE.")
@click.option("--hidden", metavar="N,N,...", help="Sizes of hidden layers before the last.")
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="P",
    help="Behind each of them, or before the last layer.",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="ADDRESS",
    help="Which heads; those that are found, if left out.",
)
@click.option("--attach", is_flag=True, help="Put a head on a TARGET that has none.")
@click.option("--attach-to", metavar="OUTPUT", help="On which output; implies --attach.")
@click.option(
    "--pool",
    type=click.Choice(["mean", "max", "first", "last"]),
    help="How features of many places become one; first is a class token.",
)
@click.option(
    "--channels", type=int, metavar="AXIS", help="The axis of those features that holds channels."
)
@click.option("--in-channels", type=click.IntRange(min=1), metavar="N", help="Of the images.")
@click.option("--image-size", type=options.Shape(), metavar="N[,N]", help="Pixels of the images.")
@click.option(
    "--freeze",
    multiple=True,
    metavar="PATTERN",
    help=f"What is not to train: {ALL_BUT_HEADS}, or addresses with * and ?.",
)
@options.example
@running.recipe
@running.output
def command(
    target: str,
    weights: Path | None,
    example: tuple[int, ...] | None,
    start: running.Start,
    writing: running.Writing,
    **asked: Any,
) -> None:
    """Give TARGET another head, other inputs or frozen layers, and write it to a file.

    \b
    surgery operate package:name --weights pretrained.pth \\
        --classes cat,dog --freeze all-but-heads -o pets.safetensors
    """  # noqa: D301
    steps = _steps(**asked)
    more: dict[str, Any] = {"example": example}
    if weights is not None:
        number = _fitting(target, weights, start)
        more |= {"weights": str(weights), "num_classes": number}
        steps = [kept for step in steps for kept in _keeping(step, number)]
    running.carry_out(running.made(target, steps, start, writing, **more), writing)


def _fitting(target: str, weights: Path, start: running.Start) -> int | None:
    """How many classes TARGET is built with, so that all of a file finds its place."""
    from surgery.recipes.fitting import fitting_classes

    targets.find_modules_here()
    if start.saved_with is not None or targets.is_path(target):
        return None
    return fitting_classes(target, str(weights), start.given, plugged.registry())


def _keeping(step: Step, number: int | None) -> Iterator[Step]:
    """A step for a model whose head has this many classes: one that is right already stays."""
    from surgery.recipes import Step

    names = step.arguments.get("classes")
    wanted = step.arguments.get("num_classes", len(names or ()))
    asked = set(step.arguments) - {"classes", "num_classes"}
    if step.verb != "replace_head" or number is None or wanted != number or asked:
        yield step
    elif names is not None:
        # The classes get names, and every one of them keeps its row.
        arguments = {"classes": names, "keep": "all", "old_classes": names}
        yield Step("replace_head", {**step.arguments, **arguments})


def _steps(
    num_classes: int | None,
    classes: str | None,
    keep: tuple[str, ...],
    old_classes: str | None,
    hidden: str | None,
    dropout: float | None,
    heads: tuple[str, ...],
    attach: bool,
    attach_to: str | None,
    pool: str | None,
    channels: int | None,
    in_channels: int | None,
    image_size: tuple[int, ...] | None,
    freeze: tuple[str, ...],
) -> list[Step]:
    """What the options ask for, in the order in which it is done."""
    from surgery.recipes import Step

    steps = []
    if in_channels is not None or image_size is not None:
        size = image_size[0] if image_size is not None and len(image_size) == 1 else image_size
        steps.append(Step("adapt_input", _given(in_channels=in_channels, image_size=size)))
    named = _names(classes)
    head = _given(
        classes=named,
        keep=_kept(keep, named, _names(old_classes)),
        old_classes=_names(old_classes),
        hidden=_sizes(hidden),
        dropout=dropout,
        heads=list(heads) or None,
        attach=attach_to or attach or None,
        pool=pool,
        channels=channels,
    )
    if num_classes is not None or named is not None:
        steps.append(Step("replace_head", _given(num_classes=num_classes) | head))
    elif head:
        raise click.UsageError("a new head needs --num-classes or --classes")
    patterns = [pattern for pattern in freeze if pattern != ALL_BUT_HEADS]
    if ALL_BUT_HEADS in freeze:
        steps.append(Step("freeze", {"except_": "heads"}))
    if patterns:
        steps.append(Step("freeze", {"patterns": patterns}))
    if not steps:
        raise click.UsageError("nothing to do: --num-classes, --in-channels, --freeze ...")
    return steps


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _names(text: str | None) -> list[str] | None:
    """Names with commas between, or the lines of a file."""
    if text is None:
        return None
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise click.UsageError(f"{text[1:]}: {said}") from error
    else:
        lines = text.split(",")
    names = [line.strip() for line in lines]
    return [name for name in names if name]


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.UsageError(f"--hidden takes sizes such as 4096,2048, not {text!r}") from error


def _kept(keep: tuple[str, ...], new: list[str] | None, old: list[str] | None) -> Any:
    """``all``, or old classes by new ones: by name, or by number where no such name is given."""
    if not keep:
        return None
    if keep == ("all",):
        return "all"

    def one(text: str, names: list[str] | None) -> str | int:
        return int(text) if text.isdecimal() and text not in (names or ()) else text

    pairs = (options.pair(text, "--keep") for text in keep)
    return {one(before, new): one(after, old) for before, after in pairs}
