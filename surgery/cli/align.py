"""``surgery align``: which tensor of one model is which of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from surgery.cli import options, plugged, show, targets


@click.command()
@click.argument("donor", metavar="DONOR", type=options.Target())
@click.argument("recipient", metavar="RECIPIENT", type=options.Target())
@options.example
@options.arguments
@options.json
@options.html
def command(
    donor: str,
    recipient: str,
    example: tuple[int, ...] | None,
    given: dict[str, Any],
    as_json: bool,
    html: Path | None,
) -> None:
    """Show which tensor of DONOR is which of RECIPIENT, two models, whatever they are called.

    One forward pass of each is recorded on the meta device, and the graphs are laid one over the
    other: nothing is computed, no weight is needed. 'surgery transplant --match graph' brings the
    values over, and proves by the outputs that they belong there. What --json writes to a file is
    what 'surgery load RECIPIENT CHECKPOINT --rename FILE' reads.
    """
    models = [targets.model_of(target, options=given) for target in (donor, recipient)]
    from surgery.operations.align import align

    found = align(*models, example=targets.tensor_of(example), registry=plugged.registry())
    show.show(found, as_json, html)
