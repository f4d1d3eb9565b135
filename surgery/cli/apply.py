"""``surgery apply``: a recipe, carried out."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import running


@click.command()
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@running.output
def command(recipe: Path, writing: running.Writing) -> None:
    """Carry out RECIPE: build, change, check, write.

    All that is wrong in it is said first, with its line. What its target names is imported and
    run, as by Python. Ends with 1 where what it expects does not hold, and writes nothing then.

    \b
    target: package:name
    weights: pretrained.pth
    steps:
    - replace_head: {classes: [cat, dog]}
    - freeze: {except_: heads}
    - expect: trainable_ratio < 0.1
    output: pets.safetensors
    """  # noqa: D301
    from surgery.recipes import read_recipe

    running.carry_out(read_recipe(recipe), writing)
