"""How a value is printed: for people in colours where they look, plain in a pipe, or as JSON."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from surgery.reports.report import report
from surgery.reports.text import WIDTH, clean
from surgery.weights.destination import check_destination, placed

_NARROWEST = 60


def show(value: object, as_json: bool = False, html: Path | None = None, **options: Any) -> None:
    """Print a value of surgery to stdout.

    Args:
        value: anything that reports describe.
        as_json: as JSON.
        html: a file to write it to as well, as one HTML page.
        options: of a text: ``depth`` and ``rows``.

    Raises:
        WeightsError: the HTML file cannot be written.
    """
    if html is not None:
        write(html, report(value, "html"))
    if as_json:
        click.echo(report(value, "json"))
        return
    click.echo(report(value, "text", width=width(), styled=is_styled(), **options))


def lines(text: str) -> None:
    """Print a text that reports did not make; control characters in it are written as escapes.

    Args:
        text: any text.
    """
    click.echo("\n".join(map(clean, text.splitlines())))


def is_styled() -> bool:
    """Whether stdout is a terminal that wants colours: see https://no-color.org."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def width() -> int:
    """Columns of the page: the terminal's, or the same for every pipe."""
    if not sys.stdout.isatty():
        return WIDTH
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def write(path: Path, text: str) -> None:
    """Write a text file beside its destination, and rename it into place.

    Args:
        path: where to; a file that is there is replaced.
        text: what to write.

    Raises:
        WeightsError: it cannot be written; what was there is untouched.
    """
    target = path.resolve()
    check_destination(target, overwrite=True)
    with placed(target, overwrite=True) as file:
        file.write(text.encode("utf-8"))
