"""Paths that a caller gives: what is there, and what may have been meant. No torch is needed."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from surgery.errors import WeightsError

# What a name has that is meant as a file, whether or not there is one.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".json")


def is_spelt_as_path(name: str) -> bool:
    """Whether a name can only be meant as a path, whether or not there is such a file.

    Args:
        name: what somebody gave for a model or a file.

    Example:
        >>> is_spelt_as_path("./model"), is_spelt_as_path("a.safetensors"), is_spelt_as_path("a")
        (True, True, False)
    """
    return "/" in name or os.sep in name or name.lower().endswith(_SUFFIXES)


def path_of(source: str | os.PathLike[str]) -> Path:
    """The path of a file or directory that is there.

    Args:
        source: what a caller gave.

    Raises:
        WeightsError: it is a URL, no path, or there is nothing; the closest names are listed.
    """
    path = Path(_text(source))
    _check_exists(path)
    return path


def _text(source: str | os.PathLike[str]) -> str:
    path = os.fspath(source)
    if isinstance(path, bytes):
        return os.fsdecode(path)
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE):
        raise WeightsError(
            "this is an address on the net, and nothing is downloaded here",
            where=path,
            expected="the path of a file or directory",
            found="a URL",
            fix="torch.hub.download_url_to_file(url, 'weights.pth')",
        )
    return path


def _check_exists(path: Path) -> None:
    if _exists(path):
        return
    beside = path.parent
    names = [each.name for each in beside.iterdir()] if beside.is_dir() else []
    close = get_close_matches(path.name, names, n=3)
    raise WeightsError(
        "there is no such file or directory",
        where=str(path),
        expected=f"perhaps {', '.join(close)}" if close else "a file or directory",
        found="nothing",
        fix=f"read({str(beside / close[0])!r})" if close else "correct the path",
    )


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise WeightsError(
            "this is no path that can be followed",
            where=repr(str(path)),
            found=str(error),
            fix="pass the path of a file or directory",
        ) from error
    return True
