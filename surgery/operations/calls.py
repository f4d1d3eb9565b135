"""What a verb was asked to do, as plain data that a file or a recipe can hold."""

from __future__ import annotations

from typing import Any

from surgery.operations.literals import Opaque, encode


def called(verb: str, **arguments: Any) -> dict[str, Any]:
    """The verb and its arguments.

    Args:
        verb: its name.
        arguments: those worth keeping; None stands for one that was not given.

    Returns:
        ``verb``, ``arguments`` that are plain, and where some are not ``other``, their names.

    Example:
        >>> called("replace_head", heads={"fc": 5}, classes=None, init=print)
        {'verb': 'replace_head', 'arguments': {'heads': {'fc': 5}}, 'other': ['init']}
    """
    plain = {name: value for name, value in arguments.items() if _is_plain(value)}
    other = [name for name in arguments if name not in plain]
    given = {name: value for name, value in plain.items() if value is not None}
    return {"verb": verb, "arguments": given} | ({"other": other} if other else {})


def _is_plain(value: Any) -> bool:
    try:
        encode(value)
    except Opaque:
        return False
    return True
