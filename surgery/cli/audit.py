"""``surgery audit``: parameters, buffers and bytes by module."""

from __future__ import annotations

from pathlib import Path

import click

from surgery.cli import options, show, targets

# What to sort by, and the column that is.
_SORTS = {"size": "total", "trainable": "trainable", "bytes": "bytes", "name": "address"}


@click.command()
@options.target
@options.depth(2)
@click.option("--sort", type=click.Choice(list(_SORTS)), help="Order of the modules in each.")
@click.option("--trainable-only", is_flag=True, help="Only modules that can be trained.")
@options.num_classes
@options.built_by
@options.json
@options.html
def command(
    target: str,
    depth: int,
    sort: str | None,
    trainable_only: bool,
    num_classes: int | None,
    built_by: str | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Count the parameters, buffers and bytes of TARGET by module, shared ones once.

    JSON has the modules of every depth.
    """
    model = targets.model_of(target, built_by=built_by, num_classes=num_classes)
    from surgery.parameters import audit
    from surgery.reports.arrange import arrange
    from surgery.reports.report import describe

    report = arrange(
        describe(audit(model)),
        "modules",
        by=_SORTS[sort] if sort else None,
        having="trainable" if trainable_only else None,
    )
    show.show(report, as_json, html, depth=depth)
