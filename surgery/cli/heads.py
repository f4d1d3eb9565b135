"""``surgery heads``: the layers that make classes, and why."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import options, plugged, show, targets


@click.command()
@options.target
@options.example
@options.json
@options.html
def command(target: str, example: tuple[int, ...] | None, as_json: bool, html: Path | None) -> None:
    """Show the layers of TARGET that make classes, the outputs they make, and why they are heads.

    One forward pass is recorded on the meta device: nothing is computed, no weight is needed.
    """
    from surgery.heads import find_heads

    model = targets.model_of(target)
    found = find_heads(model, targets.tensor_of(example), registry=plugged.registry())
    show.show(found, as_json, html)
