"""Where random numbers come from, so that an operation can give back those it drew."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class _Source:
    """One generator: how its state is read and set, and what it was."""

    read: Callable[[], Any]
    set: Callable[[Any], object]
    state: Any

    def moved(self) -> bool:
        return not _same(self.read(), self.state)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and hasattr(one[1], "tobytes"):
        return (one[1].tobytes(), *one[2:]) == (other[1].tobytes(), *other[2:])
    return bool(one == other)


class Draws:
    """The states of all generators at one moment, and what was drawn from them since.

    Covers torch's generators (of the CPU and of every CUDA device in use), one of the caller's,
    Python's and NumPy's: a callable that initialises a layer may use any of them.

    Args:
        generator: the caller's, if any.

    Example:
        >>> import torch
        >>> from surgery.operations.draws import Draws
        >>> draws, state = Draws(), torch.get_rng_state()
        >>> number = torch.rand(())
        >>> draws.settle()
        >>> draws.give_back()
        >>> torch.equal(torch.get_rng_state(), state)
        True
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._sources = tuple(_Source(read, set_, read()) for read, set_ in _pairs(generator))
        self._left: tuple[tuple[_Source, Any], ...] = ()

    def take_back(self) -> None:
        """Set every generator back: the operation failed, or only a plan was wanted."""
        for source in self._sources or [source for source, _ in self._left]:
            if source.moved():
                source.set(source.state)

    def settle(self) -> None:
        """The operation is over: keep what it drew from, and nothing else."""
        self._left = tuple((s, s.read()) for s in self._sources if s.moved())
        self._sources = ()

    def give_back(self) -> None:
        """The operation is undone: set back the generators that nobody drew from since."""
        for source, left in self._left:
            if _same(source.read(), left):
                source.set(source.state)


def _pairs(
    generator: torch.Generator | None,
) -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    found: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
        (torch.get_rng_state, torch.set_rng_state),
        (random.getstate, random.setstate),
    ]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators: tuple[torch.Generator, ...] = torch.cuda.default_generators
        found += [(each.get_state, each.set_state) for each in generators]
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        found.append((numpy.get_state, numpy.set_state))
    if generator is not None:
        found.append((generator.get_state, generator.set_state))
    return found
