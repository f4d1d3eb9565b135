"""``surgery audit``: parameters, buffers and bytes by module."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import options, show, targets


@click.command()
@options.target
@options.depth(2)
@options.json
@options.html
def command(target: str, depth: int, as_json: bool, html: Path | None) -> None:
    """Count the parameters, buffers and bytes of TARGET by module, shared ones once."""
    from surgery.parameters import audit

    show.show(audit(targets.model_of(target)), as_json, html, depth=depth)
