"""``surgery diff``: what two models or checkpoints do not have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgery.cli import options, plugged, show, targets

if TYPE_CHECKING:
    from torch import nn

    from surgery.weights.value import Weights


def _tolerance(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    """Two numbers from text: ``1e-8,1e-5``; one stands for both."""
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise click.BadParameter(f"{value!r} is no tolerance such as 1e-5 or 1e-8,1e-5", ctx, param)
    return numbers[0], numbers[-1]


@click.command()
@click.argument("a", type=options.Target(), metavar="A")
@click.argument("b", type=options.Target(), metavar="B")
@click.option(
    "--values/--no-values",
    default=None,
    help="Compare values as well; done for two checkpoints where nothing is said. A model that "
    "is named is built for it, with the values that its code gives it.",
)
@click.option(
    "--tolerance",
    callback=_tolerance,
    metavar="X[,Y]",
    help="How far apart values may be: absolute, and relative to A; one number for both.",
)
@click.option("--exact-names", is_flag=True, help="Compare tensors of the very same name only.")
@options.arguments
@options.json
@options.html
@click.pass_context
def command(
    ctx: click.Context,
    a: str,
    b: str,
    values: bool | None,
    tolerance: tuple[float, float] | None,
    exact_names: bool,
    given: dict[str, Any],
    as_json: bool,
    html: Path | None,
) -> None:
    """Show what A and B, each a TARGET, do not have in common.

    The exit status is 0 where nothing differs, 1 where something does, and 2 for a mistake. Other
    names for the same tensors, and other metadata, are shown and do not count.
    """
    from surgery.cli.running import progress
    from surgery.weights.comparison import diff

    if targets.is_path(a) and targets.is_path(b):
        asked = {"--option": given or None}
        targets.refuse(b, "a file", "the name of a model", asked)
    if values is None:
        values = targets.is_path(a) and targets.is_path(b)
    with progress() as told:
        found = diff(
            _source(a, values, given),
            _source(b, values, given),
            values=values,
            tolerance=tolerance,
            exact_names=exact_names,
            progress=told,
            registry=plugged.registry(),
        )
    found = replace(found, a=_called(a, found.a), b=_called(b, found.b))
    show.show(found, as_json, html)
    ctx.exit(0 if found.same else 1)


def _source(target: str, values: bool, given: dict[str, Any]) -> nn.Module | Weights:
    if targets.is_path(target):
        return targets.weights_of(target)
    return targets.model_of(target, values=values, options=given)


def _called(target: str, origin: str) -> str:
    """What to call a source: of a model that was built, what was asked for says more."""
    return origin if targets.is_path(target) else target
