"""Long lists of names made short: ``layer3.{0..22}.conv1.weight``.

A listing and its names say the same: unfolded, it gives each name once and no other. Names come
from files and are data, so a name that holds a brace itself is never folded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

# A number on its own is an index. Behind a word (`conv1`, `layer4`) it is part of a name that
# people know, unless there are more of them than anyone would name one by one.
_INDEX = re.compile(r"(?:0|[1-9][0-9]*)")
_NUMBERED = re.compile(r"(\D*\D)(0|[1-9][0-9]*)", re.ASCII)
_MANY = 5


def fold(names: Iterable[str]) -> tuple[str, ...]:
    """Fold the indices of layers in a list of dotted names.

    Args:
        names: any names, each once.

    Returns:
        As few lines as it takes, in the order in which the first name of each came. A range is
        ``{0..22}``; several are joined by commas, ``{0..3,7}``.

    Example:
        >>> fold(["fc.bias", *(f"layer3.{i}.conv1.weight" for i in range(23))])
        ('fc.bias', 'layer3.{0..22}.conv1.weight')
    """
    # Each line with the place of its first name, which decides the order.
    lines = {tuple(name.split(".")): place for place, name in reversed([*enumerate(names)])}
    plain = {parts: place for parts, place in lines.items() if not _braced(parts)}
    kept = {parts: place for parts, place in lines.items() if parts not in plain}
    # The last place first: the members of a layer have to be alike before the layers are.
    for position in reversed(range(max(map(len, plain), default=0))):
        plain = _folded(plain, position)
    merged = {**plain, **kept}
    return tuple(".".join(parts) for parts in sorted(merged, key=merged.__getitem__))


def _braced(parts: tuple[str, ...]) -> bool:
    return any("{" in part or "}" in part for part in parts)


def _folded(lines: dict[tuple[str, ...], int], position: int) -> dict[tuple[str, ...], int]:
    """The lines with the numbers at one position brought together."""
    groups: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[tuple[int, int]]] = {}
    result: dict[tuple[str, ...], int] = {}
    for parts, place in lines.items():
        stem, number = _number(parts, position)
        if number is None:
            result[parts] = place
        else:
            alike = (parts[:position], stem, parts[position + 1 :])
            groups.setdefault(alike, []).append((number, place))
    for (before, stem, after), members in groups.items():
        numbers = sorted(number for number, _ in members)
        if len(numbers) < (_MANY if stem else 2):
            for number, place in members:
                result[(*before, f"{stem}{number}", *after)] = place
        else:
            first = min(place for _, place in members)
            result[(*before, f"{stem}{{{_ranges(numbers)}}}", *after)] = first
    return result


def _number(parts: tuple[str, ...], position: int) -> tuple[str, int | None]:
    if position < len(parts):
        part = parts[position]
        if _INDEX.fullmatch(part):
            return "", int(part)
        if match := _NUMBERED.fullmatch(part):
            return match[1], int(match[2])
    return "", None


def _ranges(numbers: list[int]) -> str:
    """Whole numbers in order as ``0..3,7``."""
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}..{members[-1]}")
    return ",".join(runs)
