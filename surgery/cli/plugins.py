"""``surgery plugins``: which there are, what each claims, what failed and why."""

from __future__ import annotations

import click

from surgery.cli import options, plugged, show


@click.command()
@options.json
def command(as_json: bool) -> None:
    """Show which plugins are installed, what each claims, and what failed and why."""
    show.show(plugged.registry(), as_json)
