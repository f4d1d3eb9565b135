"""How old channels make new ones, and how inputs were and will be normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch

from surgery.errors import ArgumentError

How: TypeAlias = Literal["auto", "sum", "repeat"] | Callable[[torch.Tensor, int], torch.Tensor]
Values: TypeAlias = float | Sequence[float]
Pair: TypeAlias = tuple[Values, Values] | None

_FIX = "surgery.adapt_input(model, in_channels=1, mean=([0.5, 0.4, 0.3], 0.4), std=(0.2, 0.2))"


@dataclass(frozen=True)
class Recipe:
    """What the weights of new channels are made of.

    Attributes:
        old: number of channels before.
        new: number of channels afterwards.
        scale: for every new channel, the factor of each old one's weights: ``scale[new][old]``.
        shift: for each old channel, the value that stands for it wherever the new input is zero;
            zeros where the normalisation stays.
        how: a callable that makes the weights instead.
    """

    old: int
    new: int
    scale: tuple[tuple[float, ...], ...]
    shift: tuple[float, ...]
    how: Callable[[torch.Tensor, int], torch.Tensor] | None = None

    @property
    def shifts(self) -> bool:
        """Whether a bias has to make up for other means."""
        return any(self.shift)

    @property
    def nothing(self) -> bool:
        """Whether the weights stay as they are."""
        same = tuple(tuple(float(i == j) for j in range(self.old)) for i in range(self.old))
        return self.how is None and self.scale == same and not self.shifts


def check_how(how: object) -> None:
    """Refuse what is no way to make weights.

    Raises:
        ArgumentError: neither a known name nor a callable.
    """
    if how in ("auto", "sum", "repeat") or (callable(how) and not isinstance(how, type)):
        return
    raise ArgumentError(
        "this is no way to make the weights of new channels",
        where="how",
        expected="'auto', 'sum', 'repeat', or a callable from the weight and the number to a new "
        "weight",
        found=repr(how),
        fix="surgery.adapt_input(model, in_channels=1, how='sum')",
    )


def make_recipe(old: int, new: int, how: How, mean: Pair, std: Pair) -> Recipe:
    """Put together how old channels make new ones.

    With ``z = (x - mean) / std`` on both sides, the layer gives for new inputs what it gave for
    old ones, where each old channel is fed by the new ones that took its weights.

    Args:
        old: number of channels before.
        new: number of channels afterwards.
        how: as in ``adapt_input``.
        mean: means of the old and of the new channels.
        std: standard deviations of the old and of the new channels.

    Raises:
        ArgumentError: ``mean`` or ``std`` does not fit, or both are given with a callable.
    """
    renormalised = mean is not None or std is not None
    if callable(how) and renormalised:
        raise ArgumentError(
            "a callable makes the weights, so nothing says which old channel feeds which new one",
            where="how, mean, std",
            expected="mean= and std= with how='sum' or 'repeat', or a callable that folds them in",
            found=f"how={how!r}",
            fix="surgery.adapt_input(model, in_channels=1, how='sum', mean=..., std=...)",
        )
    old_mean, new_mean = _pair("mean", mean, old, new, 0.0)
    old_std, new_std = _pair("std", std, old, new, 1.0)
    share = _share(old, new, "repeat" if callable(how) else how)
    scale = tuple(
        tuple(share[j][c] * (new_std[j] / old_std[c] if renormalised else 1.0) for c in range(old))
        for j in range(new)
    )
    shift = tuple(
        sum(share[j][c] * (new_mean[j] - old_mean[c]) / old_std[c] for j in range(new))
        for c in range(old)
    )
    return Recipe(old, new, scale, shift, how if callable(how) else None)


def _share(old: int, new: int, how: str) -> list[list[float]]:
    if how == "auto" and new == old:
        return [[float(j == c) for c in range(old)] for j in range(new)]
    if how == "sum" or (how == "auto" and new == 1):
        return [[1.0 / new] * old for _ in range(new)]
    return [[old / new if c == j % old else 0.0 for c in range(old)] for j in range(new)]


def _pair(
    name: str, given: Any, old: int, new: int, default: float
) -> tuple[list[float], list[float]]:
    if given is None:
        return [default] * old, [default] * new
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ArgumentError(
            f"{name} tells how inputs were normalised and how they are going to be",
            where=name,
            expected=f"a pair: {name} of the old channels, {name} of the new ones",
            found=repr(given),
            fix=_FIX,
        )
    return _values(name, given[0], old, "old"), _values(name, given[1], new, "new")


def _values(name: str, given: Any, count: int, which: str) -> list[float]:
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, Real) and not isinstance(listed, bool):
        listed = [listed] * count
    right = isinstance(listed, Sequence) and len(listed) == count
    numbers = [float(v) for v in listed if isinstance(v, Real)] if right else []
    finite = all(math.isfinite(v) and (v > 0 or name == "mean") for v in numbers)
    if not right or len(numbers) != count or not finite:
        raise ArgumentError(
            f"these are no values for the {which} channels",
            where=name,
            expected=f"a number{' above zero' if name == 'std' else ''}, or {count} of them",
            found=repr(given),
            fix=_FIX,
        )
    return numbers
