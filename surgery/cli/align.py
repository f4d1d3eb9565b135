"""``surgery align``: which tensor of one model is which of another."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgery.cli import options, plugged, show, targets

if TYPE_CHECKING:
    from torch import nn

    from surgery.operations.correspondence import Correspondence


@click.command()
@click.argument("donor", metavar="DONOR", type=options.Target())
@click.argument("recipient", metavar="RECIPIENT", type=options.Target())
@options.example
@options.recipient_example
@options.donor_arguments
@options.recipient_arguments
@options.json
@options.html
def command(
    donor: str,
    recipient: str,
    example: tuple[int, ...] | None,
    recipient_example: tuple[int, ...] | None,
    donor_given: dict[str, Any],
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
    from surgery.errors import RecordError
    from surgery.operations.align import align

    def found(values: bool) -> Correspondence:
        models = [
            _model(target, arguments, values)
            for target, arguments in ((donor, donor_given), (recipient, given))
        ]
        return align(
            *models,
            example=targets.tensor_of(example),
            recipient_example=targets.tensor_of(recipient_example),
            registry=plugged.registry(),
        )

    try:
        shown = found(values=False)
    except RecordError as error:
        if error.found != "meta":
            raise
        # What is computed on the way there has to be looked at.
        shown = found(values=True)
    show.show(shown, as_json, html)


def _model(target: str, given: dict[str, Any], values: bool) -> nn.Module:
    """A model; a checkpoint that does not say what it belongs to has no graph."""
    from surgery.errors import PlanError

    try:
        return targets.model_of(target, options=given, values=values)
    except PlanError as error:
        if targets.is_path(target) and "--target" in str(error.expected):
            error.expected = "the name of a model, or a file of surgery.save that says it"
            error.fix = (
                "the name of its model in its place, with --json > found.json; then surgery load "
                f"RECIPIENT {shlex.quote(target)} --rename found.json"
            )
        raise
