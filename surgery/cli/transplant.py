"""``surgery transplant``: layers of one model into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgery.cli import options, running


@click.command()
@click.argument("donor", metavar="DONOR", type=options.Target())
@click.argument("target", metavar="RECIPIENT", type=options.Target())
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="OLD=NEW",
    help="Where layers go: 'features.*=stem.*'. Left out: what both have.",
)
@click.option("--freeze", is_flag=True, help="What arrives is not to train.")
@click.option("--donor-weights", type=click.Path(), metavar="FILE", help="Loaded into DONOR.")
@options.donor_arguments
@options.weights
@click.option(
    "--on-mismatch",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What becomes of tensors of another shape.",
)
@click.option(
    "--allow-differences",
    is_flag=True,
    help="Also between layers that differ in more than their weights.",
)
@click.option(
    "--match",
    type=click.Choice(["address", "graph"]),
    default="address",
    show_default=True,
    help="By name, or by what both compute: between libraries, proven by output.",
)
@click.option("--set-differences", is_flag=True, help="By graph: take over eps and the like.")
@click.option(
    "--min-coverage",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="By graph: share of tensors that must have a counterpart; 0.5 if left out.",
)
@options.example
@options.recipient_example
@running.recipe
@running.output
def command(
    donor: str,
    target: str,
    weights: Path | None,
    start: running.Start,
    writing: running.Writing,
    mapping: tuple[str, ...],
    donor_weights: str | None,
    donor_given: dict[str, Any],
    allow_differences: bool,
    match: str,
    set_differences: bool,
    min_coverage: float | None,
    example: tuple[int, ...] | None,
    recipient_example: tuple[int, ...] | None,
    **arguments: Any,
) -> None:
    """Put layers of DONOR, a model or a checkpoint, into RECIPIENT, and write that to a file."""
    from surgery.recipes import Step

    if allow_differences and set_differences:
        raise click.UsageError("differences are allowed by name, or set by graph: not both")
    arguments["donor"] = donor
    if donor_weights is not None or donor_given:
        arguments["donor"] = {"target": donor}
        arguments["donor"] |= {"options": donor_given} if donor_given else {}
        arguments["donor"] |= {} if donor_weights is None else {"weights": donor_weights}
    arguments |= {"mapping": _mapping(mapping)} if mapping else {}
    arguments |= {"differences": "allow"} if allow_differences else {}
    arguments |= {"differences": "set"} if set_differences else {}
    arguments |= {} if match == "address" else {"match": match}
    arguments |= {} if min_coverage is None else {"min_coverage": min_coverage}
    shapes = {"example": example, "recipient_example": recipient_example}
    arguments |= {name: list(shape) for name, shape in shapes.items() if shape is not None}
    file = None if weights is None else str(weights)
    steps = [Step("transplant", arguments)]
    running.carry_out(running.made(target, steps, start, writing, weights=file), writing)


def _mapping(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [options.pair(text, "--map") for text in texts]
    if len(dict(pairs)) < len(pairs):
        raise click.UsageError("--map names each layer of DONOR once")
    return dict(pairs)
