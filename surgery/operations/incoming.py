"""What comes out of a source of weights: each tensor once, in the order of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from surgery.weights.memory import Memory
from surgery.weights.value import Weights


class Incoming:
    """Reads tensors of a source when their turn comes, and opens every file once.

    What is asked for in the order of the source is read right then. What comes by on the way to
    another tensor is kept until it is asked for.

    Args:
        weights: the source.
        names: what is going to be asked for.

    Example:
        >>> import torch
        >>> from surgery.weights import read
        >>> incoming = Incoming(read({"a": torch.zeros(1), "b": torch.ones(1)}), ["a", "b"])
        >>> incoming.read("b"), incoming.read("a")
        (tensor([1.]), tensor([0.]))
    """

    def __init__(self, weights: Weights, names: Iterable[str]) -> None:
        self._weights = weights
        self._pending = set(names)
        self._passed: dict[str, torch.Tensor] = {}
        self._given: set[str] = set()
        self._tensors: Iterator[tuple[str, torch.Tensor]] | None = None

    def read(self, name: str) -> torch.Tensor:
        """One tensor, which nobody else holds.

        Raises:
            WeightsError: it cannot be read (any more).
        """
        if name not in self._pending and name not in self._passed:
            return self._weights.read(name)
        tensor = self._passed.pop(name, None)
        while tensor is None:
            tensor = self._next(name)
        # Aliases are one tensor, and two tensors of a model must not become one.
        shared = not self._given.isdisjoint(self._weights.tensors[name].aliases)
        self._given.add(name)
        self._finish()
        return tensor.clone() if shared else tensor

    def _next(self, wanted: str) -> torch.Tensor | None:
        if self._tensors is None:
            self._tensors = self._weights.read_many(self._pending)
        name, tensor = next(self._tensors)
        self._pending.discard(name)
        if name == wanted:
            return tensor
        self._passed[name] = tensor
        return None

    def _finish(self) -> None:
        """Go to the end behind the last tensor: a file is closed, and looked at once more."""
        if not self._pending and self._tensors is not None:
            for _ in self._tensors:
                continue
            self._tensors = None


def live(weights: Weights, name: str) -> torch.Tensor | None:
    """The tensor itself, where the source is a dict or a model in memory."""
    store = weights._store
    return store.tensors[name] if isinstance(store, Memory) else None
