"""``surgery audit``: parameters, buffers and bytes by module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgery.cli import options, show, targets

# What to sort by, and the column that is.
_SORTS = {"size": "total", "trainable": "trainable", "bytes": "bytes", "name": "address"}


if TYPE_CHECKING:
    from surgery.reports.report import Report, Table, Value


@click.command()
@options.target
@options.depth(2)
@click.option("--sort", type=click.Choice(list(_SORTS)), help="Order of the modules in each.")
@click.option("--trainable-only", is_flag=True, help="Only modules that can be trained.")
@options.num_classes
@options.built_by
@options.arguments
@options.json
@options.html
def command(
    target: str,
    depth: int,
    sort: str | None,
    trainable_only: bool,
    num_classes: int | None,
    built_by: str | None,
    given: dict[str, Any],
    as_json: bool,
    html: Path | None,
) -> None:
    """Count the parameters, buffers and bytes of TARGET by module, shared ones once.

    JSON has the modules of every depth.
    """
    model = targets.model_of(target, built_by=built_by, num_classes=num_classes, options=given)
    from surgery.parameters import audit
    from surgery.reports.arrange import arrange
    from surgery.reports.report import describe

    report = arrange(
        describe(audit(model)) if targets.is_path(target) else _as_built(describe(audit(model))),
        "modules",
        by=_SORTS[sort] if sort else None,
        having="trainable" if trainable_only else None,
    )
    show.show(report, as_json, html, depth=depth)


def _as_built(report: Report) -> Report:
    """With the memory where the model would have it: parameters are not made to be counted."""

    def merged(table: Table) -> Table:
        if table.key != "memory":
            return table
        found: dict[tuple[Value, Value], tuple[Any, Any]] = {}
        for dtype, device, size, share in table.rows:
            key = dtype, "cpu" if device == "meta" else device
            before = found.get(key, (0, 0.0))
            found[key] = before[0] + size, before[1] + share
        rows = sorted(((*key, *sums) for key, sums in found.items()), key=lambda row: -row[2])
        return replace(table, rows=tuple(rows))

    return replace(report, tables=tuple(map(merged, report.tables)))
