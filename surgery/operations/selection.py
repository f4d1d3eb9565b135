"""Which parameters and layers a person means: addresses, patterns, heads, stages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry, check_registry, in_force
from surgery.heads import find_heads
from surgery.operations.known_stages import known_stages
from surgery.patterns import Patterns, fitting, listed, prefixes

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
        patterns: one or several: an address, which names itself and nothing else; or a name with
            ``*`` and ``?``; ``"heads"``, the heads that are found; a compiled regular expression
            that must fit the whole address; or a callable that is asked about each address.
        argument: the name of the argument they were passed as, for errors.
        example: for finding heads.
        registry: for finding heads.

    Raises:
        ArgumentError: a pattern that is none, that fits nothing, or that means two things; no
            registry.
    """
    check_registry(registry)
    addresses = _addresses(model)
    found: set[str] = set()
    exact: set[str] = set()
    for pattern in listed(patterns, argument):
        if isinstance(pattern, str) and pattern == HEADS:
            fits = _in_heads(model, argument, addresses, example, registry)
        elif isinstance(pattern, str) and pattern in addresses:
            # There may be thousands of these: one pass for all.
            exact.add(pattern)
            continue
        else:
            fits = fitting(pattern, argument)
        fit = {address for address in addresses if fits(address)}
        if not fit and addresses:
            raise _nothing(pattern, argument, addresses)
        found |= fit
    inside = _inside(exact)
    return frozenset(found.union(filter(inside, addresses) if exact else ()))


def first_stages(
    model: nn.Module, count: object, registry: Registry | None, *, from_end: bool = False
) -> tuple[str, ...]:
    """Addresses of the stem and the first stages, as the model's family knows them.

    Args:
        model: any module.
        count: how many stages.
        registry: the plugins to ask; those installed, if left out.
        from_end: all but the last ``count`` stages are the first ones.

    Raises:
        ArgumentError: no plugin knows the model's stages, or it has fewer.
    """
    verb = "unfreeze" if from_end else "freeze"
    known = in_force(registry)
    found = known_stages(model, known)
    if found is None:
        raise ArgumentError(
            "no plugin knows the stages of this model",
            where="stages",
            expected="a model of a family with stages",
            found=tree.class_name(type(tree.unwrap(model))),
            fix=f"surgery.{verb}(model, ['first_layer', 'blocks.0'])",
        )
    stages = found.stages
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(stages):
        besides = "what follows the last one" if from_end else "the stem"
        raise ArgumentError(
            f"stages is how many stages to {verb} besides {besides}: 0 is that alone",
            where="stages",
            expected=f"0 to {len(stages)}",
            found=repr(count),
            fix=f"surgery.{verb}(model, stages={len(stages) - 1})",
        )
    early = stages[: len(stages) - count] if from_end else stages[:count]
    return (*found.stem, *(address for stage in early for address in stage))


def _addresses(model: nn.Module) -> dict[str, None]:
    """Every address, in order, each once."""
    index = tree.index(model)
    found = [a for _, addresses in index.modules.values() for a in addresses if a]
    found += [a for entry in index.tensors.values() for a in entry.addresses]
    return dict.fromkeys(found)


def _inside(wanted: set[str]) -> Callable[[str], bool]:
    return lambda address: not wanted.isdisjoint(prefixes(address))


def _in_heads(
    model: nn.Module,
    argument: str,
    addresses: dict[str, None],
    example: Any,
    registry: Registry | None,
) -> Callable[[str], bool]:
    heads = find_heads(model, example, registry=registry)
    is_there = _inside({HEADS})
    outside = [head.address for head in heads if not any(map(is_there, head.addresses))]
    if HEADS in addresses and (outside or not heads):
        made = [head.address for head in heads if head.address]
        exact = isinstance(tree.get(model, HEADS), nn.Module)
        fixes = [repr(made)] if made else []
        fixes.append(repr(f"{HEADS}.*") if exact else f"re.compile({HEADS!r})")
        raise ArgumentError(
            "'heads' means the heads that are found, and here it is an address of something else",
            where=f"{argument}={HEADS!r}",
            expected="a name for one of them",
            found=f"the heads are {made or [head.address for head in heads]}, and {HEADS!r} is "
            "an address",
            fix=" or ".join(f"{argument}={fix}" for fix in fixes),
        )
    if not heads:
        raise ArgumentError(
            "no heads were found in this model",
            where=f"{argument}={HEADS!r}",
            expected="a layer that makes classes",
            found=heads.ending,
            fix="name them: for name, _ in model.named_modules(): print(name)",
        )
    inside = {address for head in heads for address in head.addresses}
    # A head that is the root holds everything.
    return (lambda address: True) if "" in inside else _inside(inside)


def _nothing(pattern: object, argument: str, addresses: dict[str, None]) -> ArgumentError:
    if isinstance(pattern, re.Pattern):
        part = next(filter(pattern.search, addresses), None)
        if part is not None:
            return ArgumentError(
                "a regular expression must fit an address from its start to its end",
                where=f"{argument}={pattern!r}",
                expected="one that fits the whole of an address",
                found=f"it fits a part of {part!r}",
                fix=f"{argument}={pattern!r}.search",
            )
    return ArgumentError(
        "nothing in the model has such an address",
        where=f"{argument}={pattern!r}",
        expected="the address of a module, parameter or buffer",
        found=str(pattern),
        fix="for name, _ in model.named_parameters(): print(name)",
    )
