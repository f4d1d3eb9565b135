"""Batch normalisation written out: a scale and a shift made of weight, bias, mean and variance.

    scale = weight / sqrt(variance + eps)
    x * scale + (bias - mean * scale)

is what frozen normalisations compute. Each step is known by what it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from surgery.graph.flows import Held

Form: TypeAlias = Literal["variance", "root", "inverse", "scale", "moved", "shift"]


@dataclass(frozen=True, slots=True)
class Folding:
    """A step on the way from statistics to scale and shift.

    Attributes:
        form: how far it is: ``scale`` and ``shift`` are where it ends.
        roles: the tensors it is made of, by role.
    """

    form: Form
    roles: Mapping[str, Held]


# The operators that make one.
STEPS = frozenset({"add", "sqrt", "rsqrt", "reciprocal", "mul", "div", "sub"})

# An operator on one step, and the step it makes.
_NEXT: Mapping[tuple[str, Form], Form] = {
    ("sqrt", "variance"): "root",
    ("rsqrt", "variance"): "inverse",
    ("reciprocal", "root"): "inverse",
}


def fold(name: str, operands: Sequence[Held | Folding | None]) -> Folding | None:
    """The step that an operator makes of tensors and of earlier steps.

    Args:
        name: the operator.
        operands: in order; None for a number and for anything else.

    Returns:
        The step, or None where it is none.

    Example:
        >>> tensors = [Held(name, "buffer", None) for name in ("w", "b", "m", "v")]
        >>> weight, bias, mean, variance = tensors
        >>> inverse = fold("rsqrt", [fold("add", [variance, None])])
        >>> scale = fold("mul", [weight, inverse])
        >>> shift = fold("sub", [bias, fold("mul", [mean, scale])])
        >>> {role: held.address for role, held in shift.roles.items()}
        {'variance': 'v', 'weight': 'w', 'mean': 'm', 'bias': 'b'}
    """
    held = [each for each in operands if isinstance(each, Held)]
    steps = [each for each in operands if isinstance(each, Folding)]
    if name == "add" and len(held) == 1 and not steps:
        return Folding("variance", {"variance": held[0]})
    if len(steps) != 1:
        return None
    (step,) = steps
    if not held and (made := _NEXT.get((name, step.form))) is not None:
        return Folding(made, step.roles)
    if len(held) != 1:
        return None
    if name == "mul" and step.form == "inverse":
        return Folding("scale", {**step.roles, "weight": held[0]})
    if name == "div" and step.form == "root" and operands[0] is held[0]:
        return Folding("scale", {**step.roles, "weight": held[0]})
    if name == "mul" and step.form == "scale":
        return Folding("moved", {**step.roles, "mean": held[0]})
    if name == "sub" and step.form == "moved" and operands[0] is held[0]:
        return Folding("shift", {**step.roles, "bias": held[0]})
    return None
