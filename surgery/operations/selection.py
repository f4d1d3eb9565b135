"""Which parameters and layers a person means: addresses, patterns, heads, stages."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.applied import stages_for, stem_for
from surgery.families.registry import Registry, check_registry, in_force
from surgery.heads import find_heads

Pattern: TypeAlias = "str | re.Pattern[str] | Callable[[str], bool]"
Patterns: TypeAlias = "Pattern | Iterable[Pattern]"
HEADS = "heads"


def select(
    model: nn.Module,
    patterns: Patterns,
    argument: str,
    *,
    example: Any = None,
    registry: Registry | None = None,
) -> frozenset[str]:
    """The addresses of all modules, parameters and buffers that patterns fit.

    What lies inside a module that fits, fits as well.

    Args:
        model: any module.
        patterns: one or several: an address, ``*`` and ``?`` allowed; ``"heads"``; a compiled
            regular expression that must fit the whole address; or a callable that is asked
            about each address.
        argument: the name of the argument they were passed as, for errors.
        example: for finding heads.
        registry: for finding heads.

    Raises:
        ArgumentError: a pattern that is none, or that fits nothing; no registry.
    """
    check_registry(registry)
    addresses = _addresses(model)
    found: set[str] = set()
    for pattern in listed(patterns):
        fits = _predicate(model, pattern, argument, example, registry)
        fitting = {address for address in addresses if any(map(fits, _prefixes(address)))}
        if not fitting and addresses:
            raise ArgumentError(
                "nothing in the model has such an address",
                where=f"{argument}={pattern!r}",
                expected="the address of a module, parameter or buffer",
                found=str(pattern),
                fix="for name, _ in model.named_parameters(): print(name)",
            )
        found |= fitting
    return frozenset(found)


def first_stages(model: nn.Module, count: object, registry: Registry | None) -> tuple[str, ...]:
    """Addresses of the stem and the first stages, as the model's family knows them.

    Raises:
        ArgumentError: no plugin knows the model's stages, or it has fewer.
    """
    known = in_force(registry)
    family = known.claim(model)
    stages = stages_for(family, model) if family is not None else ()
    if family is None or not stages:
        raise ArgumentError(
            "no plugin knows the stages of this model",
            where="stages",
            expected="a model of a family with stages",
            found=tree.class_name(type(tree.unwrap(model))),
            fix="surgery.freeze(model, ['first_layer', 'blocks.0'])",
        )
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(stages):
        raise ArgumentError(
            "stages is the number of stages to take, the stem included",
            where="stages",
            expected=f"0 to {len(stages)}",
            found=repr(count),
            fix=f"surgery.freeze(model, stages={len(stages) - 1})",
        )
    stem = stem_for(family, model)
    return (*stem, *(address for stage in stages[:count] for address in stage))


def listed(patterns: Patterns) -> tuple[Any, ...]:
    """One pattern or several, as a tuple."""
    if isinstance(patterns, str | re.Pattern) or callable(patterns):
        return (patterns,)
    return tuple(patterns)


def _addresses(model: nn.Module) -> list[str]:
    index = tree.index(model)
    found = [a for _, addresses in index.modules.values() for a in addresses if a]
    found += [a for entry in index.tensors.values() for a in entry.addresses]
    return found


def _prefixes(address: str) -> list[str]:
    parts = address.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _predicate(
    model: nn.Module,
    pattern: object,
    argument: str,
    example: Any,
    registry: Registry | None,
) -> Callable[[str], bool]:
    if pattern == HEADS:
        heads = find_heads(model, example, registry=registry)
        inside = {address for head in heads for address in head.addresses}
        # A head that is the root holds everything.
        return (lambda address: True) if "" in inside else inside.__contains__
    if isinstance(pattern, str):
        return lambda address: fnmatch.fnmatchcase(address, pattern)
    if isinstance(pattern, re.Pattern):
        return lambda address: pattern.fullmatch(address) is not None
    if callable(pattern):
        return lambda address: bool(pattern(address))
    raise ArgumentError(
        "this names no parameter",
        where=argument,
        expected="an address with '*' and '?', a regular expression, or a callable",
        found=repr(pattern),
        fix="surgery.freeze(model, 'features.*')",
    )
