"""``surgery summary``: a model layer by layer, as torchinfo shows it."""

from __future__ import annotations

import click

from surgery.cli import options, show, targets


@click.command()
@options.target
@options.example
@options.depth(3)
@options.json
def command(target: str, example: tuple[int, ...] | None, depth: int, as_json: bool) -> None:
    """Show TARGET layer by layer, with torchinfo's table; nothing is computed."""
    from surgery.layers import summary

    model = targets.model_of(target)
    show.show(summary(model, targets.tensor_of(example), depth=depth), as_json)
