"""What the caller says about names: renames, and what to leave out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeAlias

from surgery.errors import ArgumentError
from surgery.patterns import fitting, listed

Rename: TypeAlias = (
    "Mapping[str, str | None] | Sequence[tuple[str | re.Pattern[str], str]]"
    " | Callable[[str], str | None]"
)
Rule: TypeAlias = "Callable[[str], str]"
_BEGINNING = re.compile(r"\^(?:\w|\\\.)+", re.ASCII)
_FIX = "rename={'old.weight': 'new.weight'}, or rename=[(r'^old\\.', 'new.')]"


def renamed(keys: Iterable[str], rename: Rename | None) -> dict[str, str | None]:
    r"""The caller's name for each key of a source.

    Args:
        keys: the source's own keys.
        rename: a mapping from keys to names; pairs of a regular expression and a replacement,
            which ``re.sub`` applies one after another; or a callable from a key to its name.
            None as a name drops the key.

    Returns:
        A name for every key, its own where nothing was said of it.

    Raises:
        ArgumentError: of another kind, no valid regular expression, a key that the source does
            not have, or a name that is none.

    Example:
        >>> renamed(["stem.weight", "fc.bias"], [(r"^stem\.", "conv1.")])
        {'stem.weight': 'conv1.weight', 'fc.bias': 'fc.bias'}
    """
    keys = list(keys)
    if rename is None:
        return dict(zip(keys, keys, strict=True))
    if isinstance(rename, Mapping):
        _check_known(keys, rename)
        return {key: _name(key, rename.get(key, key)) for key in keys}
    if callable(rename):
        return {key: _name(key, rename(key)) for key in keys}
    rules = _rules(rename)
    return {key: applied(key, rules) for key in keys}


def compiled(pattern: str | re.Pattern[str], replacement: str) -> Rule:
    r"""A rule of regular expression and replacement as a function of a name.

    Example:
        >>> compiled(r"^stem\.(\d)", r"conv\1")("stem.1.weight")
        'conv1.weight'
    """
    text = pattern if isinstance(pattern, str) else ""
    if _BEGINNING.fullmatch(text) and "\\" not in replacement:
        # A plain beginning, of which long tables consist, is compared many times faster.
        start = text[1:].replace("\\", "")
        return lambda name: replacement + name[len(start) :] if name.startswith(start) else name
    substitute = re.compile(pattern).sub
    return lambda name: substitute(replacement, name)


def applied(name: str, rules: Iterable[Rule]) -> str:
    """A name after rules, one after another."""
    for rule in rules:
        name = rule(name)
    return name


def left_out(
    patterns: object, names: Mapping[str, tuple[str, ...]]
) -> tuple[frozenset[str], frozenset[int]]:
    """The keys that patterns fit, under any of their names.

    Args:
        patterns: one or several, as ``surgery.patterns`` reads them.
        names: the names by which each key goes.

    Returns:
        The keys, and the positions of the patterns that fit something.
    """
    found, used = set(), set()
    for position, pattern in enumerate(listed(patterns, "drop")):
        fits = fitting(pattern, "drop")
        hit = {key for key, known in names.items() if any(map(fits, dict.fromkeys(known)))}
        if hit:
            used.add(position)
        found |= hit
    return frozenset(found), frozenset(used)


def _rules(rename: object) -> tuple[Rule, ...]:
    if isinstance(rename, str) or not isinstance(rename, Sequence):
        raise _wrong(repr(rename), "a mapping, pairs of strings, or a callable")
    rules = []
    for rule in rename:
        if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[1], str):
            raise _wrong(repr(rule), "pairs of a regular expression and its replacement")
        try:
            pattern = re.compile(rule[0])
            # Against itself with nothing in the groups, the replacement is tried on its own.
            names = {number: f"?P<{name}>" for name, number in pattern.groupindex.items()}
            empty = "".join(f"({names.get(i, '')})" for i in range(1, pattern.groups + 1))
            re.sub(empty, rule[1], "")
        except (re.error, IndexError, TypeError) as error:
            raise _wrong(
                f"{rule!r}: {error}", "what re.sub(pattern, replacement, key) takes"
            ) from (error)
        rules.append(compiled(*rule))
    return tuple(rules)


def _check_known(keys: Sequence[str], rename: Mapping[str, str | None]) -> None:
    known = set(keys)
    for key in rename:
        if key not in known:
            close = get_close_matches(str(key), keys, n=3)
            raise ArgumentError(
                "the source has no such key to rename",
                where=f"rename[{key!r}]",
                expected=" or ".join(map(repr, close)) if close else f"one of {len(keys)} keys",
                found=repr(key),
                fix=f"rename={{{close[0]!r}: {rename[key]!r}}}"
                if close
                else "list(source.tensors)",
            )


def _name(key: str, name: object) -> str | None:
    if name is None or (isinstance(name, str) and name):
        return name
    raise _wrong(f"{name!r} for {key!r}", "a name, or None to drop the key")


def _wrong(found: str, expected: str) -> ArgumentError:
    return ArgumentError(
        "this renames nothing", where="rename", expected=expected, found=found, fix=_FIX
    )
