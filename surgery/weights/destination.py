"""Where a file is written to, so that nobody ever finds half of one. No torch is needed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from surgery.errors import ArgumentError, WeightsError
from surgery.weights.lock import locked


def check_destination(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a destination that cannot be written to, before anything is made.

    Raises:
        ArgumentError: this is no path.
        WeightsError: there is a file already, or no directory.
    """
    if not is_path(path):
        raise ArgumentError(
            "this is no path that can be written to",
            where="path",
            expected="the path of a file",
            found=repr(path),
            fix="surgery.save(model, 'model.safetensors')",
        )
    target = Path(path).resolve()
    if target.is_dir():
        raise WeightsError(
            "this is a directory, and the file needs a name",
            where=str(target),
            expected="the path of a file",
            found="a directory",
            fix=f"surgery.save(model, {str(target / 'model.safetensors')!r})",
        )
    if not target.parent.is_dir():
        raise WeightsError(
            "there is no such directory to write to",
            where=str(target.parent),
            expected="a directory",
            found="a file" if target.parent.exists() else "nothing",
            fix=f"Path({str(target.parent)!r}).mkdir(parents=True)",
        )
    if target.exists():
        if not target.is_file():
            raise WeightsError(
                "this is no file that could be replaced",
                where=str(target),
                expected="a regular file, or nothing",
                found="a device, a pipe or a socket",
                fix="pass the path of a file",
            )
        if not overwrite:
            raise WeightsError(
                "there is a file already",
                where=str(target),
                expected="a new name, or overwrite=True",
                found=f"{target.stat().st_size:,} bytes",
                fix=f"surgery.save(model, {target.name!r}, overwrite=True)",
            )


def is_path(path: object) -> bool:
    """Whether this can be the path of a file at all."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    return isinstance(text, str) and bool(text) and "\0" not in text


@contextmanager
def placed(target: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A new file that takes its place once everything is written; gone if anything fails.

    A process that is killed leaves its file behind; whoever writes to the same destination next
    removes it. Files of processes that live are locked, and nobody else's name is like theirs.

    Args:
        target: the destination; links are not followed.
        overwrite: replace a file that is there.

    Yields:
        The file, under another name in the same directory.

    Raises:
        WeightsError: there is a file already, no directory, no permission or no space left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder, "a.txt")
        ...     with placed(target, overwrite=False) as file:
        ...         count = file.write(b"all of it")
        ...         there = target.exists()
        ...     there, target.read_text()
        (False, 'all of it')
    """
    try:
        _sweep(target)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666
        part, handle, lock = _part(target, mode)
    except (OSError, ValueError) as error:
        raise _not_written(target, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        check_destination(target, overwrite)
        # Atomic on one file system, and the two names lie in one directory.
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _not_written(target, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    _sync_directory(target.parent)


def _stem(target: Path) -> str:
    return f"{target.name[:200]}.surgery-"


def _part(target: Path, mode: int) -> tuple[Path, int, int | None]:
    """A new file beside its destination, open to be written, and what holds its lock."""
    while True:
        part = target.with_name(f"{_stem(target)}{secrets.token_hex(4)}.part")
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        held = locked(handle)
        if held is False or (held and not os.fstat(handle).st_nlink):
            # Somebody took it for a file that was left behind before it was locked.
            os.close(handle)
            part.unlink(missing_ok=True)
            continue
        # The lock goes with its last descriptor, and the file is closed before it is renamed.
        return part, handle, os.dup(handle) if held else None


def _sweep(target: Path) -> None:
    """Remove what processes that were killed left beside a destination."""
    ours = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{8}\.part")
    with os.scandir(target.parent) as entries:
        left = [entry.path for entry in entries if ours.fullmatch(entry.name)]
    for path in left:
        # What cannot be opened or removed is in nobody's way.
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if locked(handle):
                    Path(path).unlink()
            finally:
                os.close(handle)


def _sync_directory(folder: Path) -> None:
    """Bring the new name to the disk, where the system lets a directory be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        # Some network file systems cannot; the renaming itself has happened.
        return
    finally:
        os.close(handle)


def _not_written(target: Path, error: OSError | ValueError) -> WeightsError:
    return WeightsError(
        "the file cannot be written; what was there is as it was",
        where=str(target),
        expected="a directory that takes a new file, with space for it",
        found=getattr(error, "strerror", None) or str(error),
        fix="make space or get permission there, or save it elsewhere",
    )
