"""Patterns of dotted names: the one language in which people say which parts they mean.

A pattern fits a name where it fits the whole of it or a module that it lies in: ``layer1``,
``layer*.0`` and ``*.bias`` all do what they say.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from surgery.errors import ArgumentError

Pattern: TypeAlias = "str | re.Pattern[str] | Callable[[str], bool]"
Patterns: TypeAlias = "Pattern | Iterable[Pattern]"


def listed(patterns: object, argument: str) -> tuple[Any, ...]:
    """One pattern or several, as a tuple.

    Args:
        patterns: what was passed.
        argument: the name of the argument it was passed as, for the error.

    Raises:
        ArgumentError: it is neither a pattern nor several.

    Example:
        >>> listed("fc", "drop"), listed(["fc", "layer*"], "drop")
        (('fc',), ('fc', 'layer*'))
    """
    if isinstance(patterns, Iterable) and not isinstance(patterns, str | bytes):
        return tuple(patterns)
    if isinstance(patterns, str | re.Pattern) or callable(patterns):
        return (patterns,)
    raise _no_pattern(patterns, argument)


def prefixes(name: str) -> list[str]:
    """The modules a dotted name lies in, the outermost first, and the name itself.

    Example:
        >>> prefixes("layer1.0.weight")
        ['layer1', 'layer1.0', 'layer1.0.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def fitting(pattern: object, argument: str) -> Callable[[str], bool]:
    """Whether a pattern fits a name, as a question to ask of many.

    Args:
        pattern: a dotted name, ``*`` and ``?`` allowed; a compiled regular expression that must
            fit the whole name; or a callable that is asked about the name and each module it
            lies in.
        argument: the name of the argument it was passed as, for the error.

    Raises:
        ArgumentError: it is none of these; later, where a callable fails on a name.

    Example:
        >>> fits = fitting("layer*.0", "drop")
        >>> fits("layer1.0.weight"), fits("layer1.1.weight")
        (True, False)
    """
    single: Callable[[str], object]
    if isinstance(pattern, str):
        # Compiled here, since fnmatch would look its cache up for every name.
        single = re.compile(fnmatch.translate(pattern)).match
    elif isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        single = pattern.fullmatch
    elif callable(pattern):
        single = _asked(pattern, argument)
    else:
        raise _no_pattern(pattern, argument)
    return lambda name: any(single(prefix) for prefix in prefixes(name))


def _asked(question: Callable[[str], object], argument: str) -> Callable[[str], bool]:
    def answer(name: str) -> bool:
        try:
            return bool(question(name))
        except Exception as error:  # a user's code: anything can come out
            raise ArgumentError(
                "a callable that chooses names failed",
                where=argument,
                expected=f"True or False for {name!r}, its only argument",
                found=f"{type(error).__name__}: {error}",
                fix=f"{argument}=lambda name: name.startswith('features.')",
            ) from error

    return answer


def _no_pattern(found: object, argument: str) -> ArgumentError:
    return ArgumentError(
        "this names no tensor",
        where=argument,
        expected="a name with '*' and '?', a regular expression of str, or a callable",
        found=repr(found),
        fix=f"{argument}='features.*'",
    )
