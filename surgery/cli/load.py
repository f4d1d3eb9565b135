"""``surgery load``: weights of a checkpoint into a model, and a verdict for every key."""

from __future__ import annotations

import re
from typing import Any

import click

from surgery.cli import options, running


@click.command()
@options.target
@click.argument("source", metavar="SOURCE", type=click.Path())
@options.num_classes
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    help="Another name for a key; old.*=new.* for all keys that begin so. Or a file: what "
    "'surgery align DONOR TARGET --json' wrote, for a checkpoint of DONOR.",
)
@click.option("--drop", multiple=True, metavar="PATTERN", help="Keys of either side to leave out.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["skip", "error", "adapt"]),
    default="skip",
    show_default=True,
    help="What becomes of tensors of another shape.",
)
@click.option(
    "--min-coverage",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    metavar="P",
    help="Share of tensors that must match on one side.",
)
@click.option("--inside", metavar="NAME", help="Which entry of a training checkpoint.")
@running.recipe
@running.output
def command(
    target: str,
    num_classes: int | None,
    start: running.Start,
    writing: running.Writing,
    rename: tuple[str, ...],
    drop: tuple[str, ...],
    inside: str | None,
    **arguments: Any,
) -> None:
    """Load what fits of the checkpoint SOURCE into TARGET, and write the model to a file."""
    from surgery.recipes import Step

    arguments |= {"rename": _renames(rename)} if rename else {}
    arguments |= {"drop": list(drop)} if drop else {}
    arguments |= {"inside": inside} if inside is not None else {}
    steps = [Step("load_weights", arguments)]
    made = running.made(target, steps, start, writing, num_classes=num_classes)
    running.carry_out(made, writing)


def _renames(texts: tuple[str, ...]) -> Any:
    """Names by keys; rules, where some are for all keys with a beginning; or a file."""
    files = [text for text in texts if text.endswith(".json") or "=" not in text]
    if files:
        if len(texts) > 1:
            raise click.UsageError(f"--rename {files[0]} is a whole table: it is given alone")
        return files[0]
    pairs = [options.pair(text, "--rename") for text in texts]
    if not any(old.endswith(".*") for old, _ in pairs):
        return dict(pairs)
    rules = []
    for old, new in pairs:
        if old.endswith(".*") != new.endswith(".*"):
            raise click.UsageError(f"--rename takes .* at both ends or at none, not {old}={new}")
        end = "" if old.endswith(".*") else "$"
        pattern = f"^{re.escape(old.removesuffix('*'))}{end}"
        rules.append([pattern, new.removesuffix("*").replace("\\", r"\\")])
    return rules
