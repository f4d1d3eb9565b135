"""What a saved file says of how it was made, in short; no torch is needed to read it.

``record.py`` reads all of it, with every check that a restored model needs. Here is what a person
asks of a file: which operations, on what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from surgery.weights.header import RepeatedError, unrepeated

VERSION = 1
# The metadata's key. Another file's metadata may well have one of this name and mean another thing.
KEY = "surgery"


@dataclass(frozen=True)
class Recorded:
    """How a file was made, as far as it says so. Nobody has checked it.

    Attributes:
        operations: the titles of the operations, in order.
        target: the name of what the model was built by.
        classes: the names of its classes.
        malformed: why this is not all there was to be read; empty where it is.
    """

    operations: tuple[str, ...] = ()
    target: str | None = None
    classes: tuple[str, ...] | None = None
    malformed: str = ""


def read_recorded(metadata: Mapping[str, str]) -> Recorded | None:
    """What the metadata of a file says of how it was made.

    Args:
        metadata: of the file.

    Returns:
        That, or None where ``surgery.save`` did not write it.

    Example:
        >>> read_recorded({"surgery": '{"version": 1, "operations": [{"title": "freeze()"}]}'})
        Recorded(operations=('freeze()',), target=None, classes=None, malformed='')
        >>> read_recorded({"format": "pt"}) is None
        True
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        content = json.loads(text, object_pairs_hook=unrepeated)
    except (RepeatedError, ValueError, RecursionError):
        return Recorded(malformed="the record of the operations is no valid JSON")
    if not isinstance(content, dict) or type(content.get("version")) is not int:
        return None
    if content["version"] > VERSION:
        return Recorded(malformed="the record was written by a later version of surgery")
    listed = content.get("operations")
    entries = listed if isinstance(listed, list) else []
    titles = _texts([each.get("title") if isinstance(each, dict) else None for each in entries])
    target = content.get("target")
    whole = isinstance(listed, list) and len(titles) == len(listed)
    return Recorded(
        titles,
        target if isinstance(target, str) else None,
        _texts(content.get("classes")) or None,
        "" if whole else "the record of the operations is malformed",
    )


def _texts(values: object) -> tuple[str, ...]:
    found = values if isinstance(values, list) else []
    return tuple(each for each in found if isinstance(each, str))
