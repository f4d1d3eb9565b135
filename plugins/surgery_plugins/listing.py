"""What a library says in its files, read as text: completion must not import the library."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def folder(package: str, *parts: str) -> Path | None:
    """A folder of an installed package, or None where it is not installed.

    Args:
        package: a top-level package.
        parts: names of folders inside it.

    Example:
        >>> from surgery_plugins.listing import folder
        >>> folder("surgery_plugins").name, folder("no_such_package")
        ('surgery_plugins', None)
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0], *parts)
