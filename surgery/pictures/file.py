"""Where a picture goes: a file that is whole or is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from surgery.errors import WeightsError
from surgery.weights import destination
from surgery.weights.destination import check_destination


@contextmanager
def placed(path: str | os.PathLike[str], overwrite: bool, example: str) -> Iterator[BinaryIO]:
    """A new file that takes its place once everything is written; gone if anything fails.

    Args:
        path: the destination.
        overwrite: replace a file that is there.
        example: how it is written, as code, for errors.

    Raises:
        ArgumentError: this is no path.
        WeightsError: there is a file already, no directory, no permission or no space.
    """
    check(path, overwrite, example)
    with destination.placed(Path(path).resolve(), overwrite) as file:
        yield file


def check(path: str | os.PathLike[str], overwrite: bool, example: str) -> None:
    """Refuse a destination that cannot be written to, before anything is made."""
    try:
        check_destination(path, overwrite)
    except WeightsError as error:
        if error.fix is not None and error.fix.startswith("surgery.save"):
            more = "overwrite=True" in str(error.expected)
            error.fix = f"{example[:-1]}, overwrite=True)" if more else example
        raise
