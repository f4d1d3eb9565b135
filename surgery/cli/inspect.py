"""``surgery inspect``: what a model or a checkpoint is."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import options, show, targets


@click.command()
@options.target
@options.json
@options.html
def command(target: str, as_json: bool, html: Path | None) -> None:
    """Show what TARGET is: of a checkpoint its tensors, with none of them read."""
    if targets.is_path(target):
        show.show(targets.weights_of(target), as_json, html)
        return
    from surgery.parameters import audit

    show.show(audit(targets.model_of(target)), as_json, html)
