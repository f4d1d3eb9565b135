"""What a value from a file is, in a few printable words, whatever it is."""

from __future__ import annotations

from surgery.weights.verdicts import printable


def brief(value: object, most: int = 80) -> str:
    """Write a value that nobody has checked.

    Args:
        value: anything that a file said.
        most: how many characters to write.

    Returns:
        Its ``repr``, cut where it is longer; its type where it cannot be written at all.

    Example:
        >>> brief([1, 2]), brief("x" * 99, 10), brief(10**9999)
        ('[1, 2]', "'xxxxxx...", 'an int too large to write')
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no number of more than some thousand digits, and no endless nesting.
        kind = type(value).__name__
        return f"a{'n' if kind[0] in 'aeiou' else ''} {kind} too large to write"
    return printable(text if len(text) <= most else text[: most - 3] + "...")
