"""``surgery heads``: the layers that make classes, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgery.cli import options, plugged, show, targets


@click.command()
@options.target
@options.example
@options.num_classes
@options.built_by
@options.arguments
@options.json
@options.html
def command(
    target: str,
    example: tuple[int, ...] | None,
    num_classes: int | None,
    built_by: str | None,
    given: dict[str, Any],
    as_json: bool,
    html: Path | None,
) -> None:
    """Show the layers of TARGET that make classes, the outputs they make, and why they are heads.

    One forward pass is recorded on the meta device: nothing is computed, no weight is needed.
    """
    model = targets.model_of(target, built_by=built_by, num_classes=num_classes, options=given)
    from surgery.heads import find_heads

    found = find_heads(model, targets.tensor_of(example), registry=plugged.registry())
    show.show(found, as_json, html)
