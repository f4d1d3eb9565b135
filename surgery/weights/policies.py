"""What is to become of tensors that fit by name and not by shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from surgery.errors import ArgumentError, PlanError
from surgery.patterns import fitting
from surgery.weights.verdicts import Mismatch, Policy

POLICIES = ("skip", "error", "adapt")


def resolve(on_mismatch: object, keys: Iterable[str]) -> Callable[[str], Policy]:
    """Which policy each key of a model has.

    Args:
        on_mismatch: a policy for all (``"skip"``, ``"error"``, ``"adapt"`` or a callable), or a
            mapping from patterns of the model's keys to policies, of which the first that fits
            counts and ``"skip"`` where none does.
        keys: the model's keys; every pattern must fit one of them.

    Raises:
        ArgumentError: no policy, no pattern, or a pattern that fits nothing.

    Example:
        >>> policy = resolve({"fc": "error", "*": "adapt"}, ["fc.bias", "conv1.weight"])
        >>> policy("fc.bias"), policy("conv1.weight")
        ('error', 'adapt')
    """
    if not isinstance(on_mismatch, Mapping):
        single = _checked(on_mismatch, "on_mismatch")
        return lambda key: single
    keys = list(keys)
    rules = []
    for pattern, policy in on_mismatch.items():
        where = f"on_mismatch[{pattern!r}]"
        if not isinstance(pattern, str | re.Pattern):
            raise ArgumentError(
                "this is no pattern of keys",
                where=where,
                expected="a key with '*' and '?', or a regular expression",
                found=repr(pattern),
                fix="on_mismatch={'fc': 'skip', '*': 'error'}",
            )
        fits = fitting(pattern, "on_mismatch")
        if keys and not any(map(fits, keys)):
            raise ArgumentError(
                "no key of the model fits this pattern",
                where=where,
                expected=f"a pattern for keys such as {keys[0]!r}",
                found=repr(pattern),
                fix="list(model.state_dict())",
            )
        rules.append((fits, _checked(policy, where)))
    return lambda key: next((policy for fits, policy in rules if fits(key)), "skip")


def check_policies(mismatched: Iterable[Mismatch]) -> None:
    """Refuse what fits by name and not by shape where the caller asked for that.

    Args:
        mismatched: as a matching lists them.

    Raises:
        PlanError: the policy of some is ``"error"``; it names them all.

    Example:
        >>> check_policies([Mismatch("fc.bias", "fc.bias", (5,), (1000,), "error")])
        Traceback (most recent call last):
            ...
        surgery.errors.PlanError: 1 tensor fits by name and not by shape
        ...
    """
    refused = [item for item in mismatched if item.policy == "error"]
    if refused:
        several = len(refused) > 1
        raise PlanError(
            f"{len(refused)} tensor{'s fit' if several else ' fits'} by name and not by shape",
            where="on_mismatch='error'",
            expected="the shapes of the model",
            found="\n".join(map(str, refused)),
            fix=f"on_mismatch={{{refused[0].key!r}: 'skip'}}",
        )


def _checked(policy: object, where: str) -> Policy:
    if callable(policy) or policy in POLICIES:
        return cast(Policy, policy)
    raise ArgumentError(
        "this says nothing about tensors of another shape",
        where=where,
        expected="'skip', 'error', 'adapt', or a callable",
        found=repr(policy),
        fix="on_mismatch='skip'",
    )
