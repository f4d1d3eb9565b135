"""``surgery summary``: a model layer by layer, as torchinfo shows it."""

from __future__ import annotations

from typing import Any

import click

from surgery.cli import options, plugged, show, targets


@click.command()
@options.target
@options.example
@options.depth(3)
@options.num_classes
@options.built_by
@options.arguments
@options.json
def command(
    target: str,
    example: tuple[int, ...] | None,
    depth: int,
    num_classes: int | None,
    built_by: str | None,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    """Show TARGET layer by layer, with torchinfo's table; nothing is computed."""
    model = targets.model_of(target, built_by=built_by, num_classes=num_classes, options=given)
    from surgery.layers import summary
    from surgery.recording import resolve_example

    arguments = resolve_example(model, targets.tensor_of(example), registry=plugged.registry())
    table = summary(model, arguments, depth=depth)
    if as_json:
        show.show(table, as_json)
    else:
        show.lines(str(table))
