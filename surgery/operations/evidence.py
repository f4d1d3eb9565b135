"""What comes out of comparing two models on random input, and what it proves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from surgery.graph.extras import Extra

# How much of what they are compared with differences may be: rounding, and nothing else.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
# The same where code casts to single precision on the way, and goes on in double.
CAST = 1e-5
# How much of the outputs has to follow the input, that they say something.
_ALIVE = 1e-5


@dataclass(frozen=True)
class Gap:
    """How far apart the numbers of two models are.

    Attributes:
        difference: the largest between two numbers.
        scale: the largest of the donor's numbers.
        change: how far the donor's move: with another input, or, for the donor's own weights, with
            one changed by a millionth of a millionth; zero where that was not looked at.
    """

    difference: float
    scale: float
    change: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether all are numbers."""
        return math.isfinite(self.difference) and math.isfinite(self.scale)

    @property
    def alive(self) -> bool:
        """Whether they follow the input."""
        return self.finite and self.change > _ALIVE * self.scale

    @property
    def chaotic(self) -> bool:
        """Whether a change by rounding alone moves them by as much."""
        return self.difference <= 100 * self.change

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.2g} where the largest value is {self.scale:.2g}"
        )


@dataclass(frozen=True)
class Proof:
    """What came out of two models with the same weights.

    Attributes:
        own: with the donor's own weights.
        random: with random ones.
        dtype: what it was computed in.
        compared: the outputs that were compared, and, where the models differ further on, the
            modules.
        common: whether these are results in the middle of the models, where their common part
            ends.
        silent: the donor's tensors that have no say in what was compared: that these are where
            they belong is what the graphs say, and no output.
        seams: where both models went on with one value, for what leads there is not the same.
        beyond: what was not compared and differs between the two.
        cast: whether the code of a model casts double precision down as it runs, or a table that
            only one of them has the inverse of was rounded to single.
        unfelt: operations that only one of the two has, and without which nothing that was
            compared would be another.
        untold: those of which that could not be told.
    """

    own: Gap
    random: Gap
    dtype: torch.dtype
    compared: tuple[str, ...]
    common: bool
    silent: tuple[str, ...] | None = ()
    seams: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    cast: bool = False
    unfelt: tuple[Extra, ...] = ()
    untold: tuple[Extra, ...] = ()

    @property
    def single(self) -> bool:
        """Whether numbers are equal within the rounding of single precision only."""
        if self.dtype is not torch.float64:
            return True
        return self.cast and not self._equal(ROUNDING[self.dtype])

    @property
    def alive(self) -> bool:
        """Whether what was compared follows the input at all."""
        return self.random.alive

    @property
    def unproven(self) -> str:
        """Why the numbers say nothing, whether they are equal or not; empty where they do."""
        if not self.own.finite:
            return "with the donor's own weights there come out values that are no numbers"
        if not self.random.finite:
            return "with random weights the signal grows beyond all numbers"
        return "" if self.alive else "the signal dies: what comes out hardly follows the input"

    @property
    def holds(self) -> bool:
        """Whether the numbers are equal within rounding, and would not be in a wrong place."""
        rounding = ROUNDING[self.dtype]
        equal = self._equal(rounding) or (self.cast and self._equal(max(rounding, CAST)))
        return not self.unproven and equal

    def _equal(self, rounding: float) -> bool:
        same = self.random.difference <= rounding * self.random.change
        close = self.own.difference <= rounding * self.own.scale
        return same and (close or self.own.chaotic)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        what = ", ".join(self.compared[:4]) + (", ..." if len(self.compared) > 4 else "")
        where = f"in the middle ({what})" if self.common else what
        text = f"{self.own}, in {name}, of {where}; with random weights {self.random}"
        if not self.alive:
            return f"{text}, which hardly follow the input and prove nothing"
        if self.holds and self.cast and self.single and self.dtype is torch.float64:
            return (
                f"{text}; a model casts to single precision or has a table in it: it rounds as much"
            )
        if self.holds and self.own.difference > ROUNDING[self.dtype] * self.own.scale:
            return f"{text}; the donor's own outputs move as much by rounding alone"
        return text
