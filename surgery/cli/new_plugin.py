"""``surgery new-plugin``: a project with a family, its contract test, and what pip needs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from surgery.cli import options, plugged
from surgery.cli.project import named, write_project


@click.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to put the project's folder; here, if left out.",
)
@click.option(
    "--class",
    "model",
    metavar="MODULE.CLASS",
    help="What to call the small network that comes with it; from NAME, if left out.",
)
@options.json
def command(name: str, directory: Path, model: str | None, as_json: bool) -> None:
    """Write a plugin project called NAME that works: a small network, a family and a test."""
    project = named(name, model, plugged.registry())
    folder = write_project(project, directory)
    files = sorted(project.templates)
    if as_json:
        said = {"schema": "surgery/project/1", "folder": str(folder), "files": files}
        click.echo(json.dumps(said, indent=2))
        return
    click.echo(f"Written: {folder}")
    for file in files:
        click.echo(f"  {file}")
    click.echo(f"Next: pip install -e '{folder}[dev]' && pytest {folder} && surgery plugins")
