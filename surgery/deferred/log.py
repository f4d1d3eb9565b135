"""What a constructor did to tensors that have no values yet, in order, and how to do it later.

Tensors are described by their storage, so that views, ties and ``.data`` need no care: whoever
shares memory shares its history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from surgery.deferred.nested import leaves_of, map_leaves


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor whose values are still to come: a window on a storage.

    Attributes:
        storage: the number under which the log knows the storage.
        size: of the window.
        stride: of the window, in elements.
        offset: of the window, in elements.
        dtype: of the elements.
    """

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def on(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor, on a storage that has the values."""
        blank = torch.empty(0, dtype=self.dtype, device=storage.device)
        return blank.set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor of which only shape and dtype are read, as ``zeros_like`` does."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One recorded call.

    Attributes:
        function: what was called.
        args: with a ``Place`` or a ``Form`` for every tensor that has no values yet.
        kwargs: the same.
        reads: the storages it reads.
        writes: the storages it writes in place.
        makes: what it returns anew; None for what is no tensor.
        draws: whether it draws random numbers.
        dtype: the default dtype at that moment.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: frozenset[int]
    writes: frozenset[int]
    makes: tuple[Place | None, ...]
    draws: bool
    dtype: torch.dtype


class Log:
    """Calls in order, and what follows from them."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._bytes: dict[int, int] = {}
        self._random: set[int] = set()
        # Two tensors may stem from one draw and be asked for one after the other.
        self._drawn: dict[int, torch.Tensor] = {}

    def storage(self, nbytes: int) -> int:
        """A number for a new storage of so many bytes."""
        number = len(self._bytes)
        self._bytes[number] = nbytes
        return number

    def append(self, call: Call) -> None:
        """Record a call."""
        self._calls.append(call)
        if call.draws or not self._random.isdisjoint(call.reads):
            self._random.update(call.writes)
            self._random.update(place.storage for place in call.makes if place is not None)

    def is_random(self, storage: int) -> bool:
        """Whether random numbers have a part in the values of a storage."""
        return storage in self._random

    def draws(self, storages: Iterable[int]) -> bool:
        """Whether computing these storages draws numbers that nobody drew before."""
        return any(
            self._calls[position].draws and position not in self._drawn
            for position in self._needed(set(storages))
        )

    def replay(
        self, storages: Iterable[int], *, all_draws: bool = False
    ) -> dict[int, torch.UntypedStorage]:
        """Do what was recorded, as far as these storages need it, in the recorded order.

        Draws from torch's default generator of the CPU; a call that was replayed before draws
        the same numbers again and moves no generator.

        Args:
            storages: which values are wanted.
            all_draws: draw also what nobody wants, so that the rest is drawn as a constructor
                that wasted those numbers would have drawn it.

        Returns:
            An untyped storage by number.
        """
        wanted = set(storages)
        needed = self._needed(wanted, all_draws=all_draws)
        last = self._last_uses(needed)
        made: dict[int, torch.UntypedStorage] = {}
        with _undisturbed(), self._all_or_nothing():
            for position in needed:
                call = self._calls[position]
                if torch.get_default_dtype() is not call.dtype:
                    torch.set_default_dtype(call.dtype)
                with self._drawing(position):
                    self._run(call, made)
                for storage in last.get(position, ()):
                    if storage not in wanted:
                        made.pop(storage, None)
        return {storage: made.get(storage) or _allocate(self._bytes[storage]) for storage in wanted}

    def _needed(self, wanted: set[int], *, all_draws: bool = False) -> list[int]:
        """The calls that wanted storages depend on, in order."""
        live = set(wanted)
        needed: list[int] = []
        for position in range(len(self._calls) - 1, -1, -1):
            call = self._calls[position]
            fresh = {place.storage for place in call.makes if place is not None}
            wasted = all_draws and call.draws and position not in self._drawn
            if wasted or not live.isdisjoint(call.writes) or not live.isdisjoint(fresh):
                needed.append(position)
                live -= fresh
                live |= call.reads | call.writes
        return needed[::-1]

    def _last_uses(self, needed: list[int]) -> dict[int, list[int]]:
        """For a call, the storages that nobody uses after it."""
        last: dict[int, int] = {}
        for position in needed:
            call = self._calls[position]
            fresh = [place.storage for place in call.makes if place is not None]
            last.update(dict.fromkeys([*call.reads, *call.writes, *fresh], position))
        found: dict[int, list[int]] = {}
        for storage, position in last.items():
            found.setdefault(position, []).append(storage)
        return found

    def _run(self, call: Call, made: dict[int, torch.UntypedStorage]) -> None:
        def real(value: Any) -> Any:
            if isinstance(value, Place):
                if value.storage not in made:
                    made[value.storage] = _allocate(self._bytes[value.storage])
                return value.on(made[value.storage])
            if isinstance(value, Form):
                return torch.empty_strided(value.size, value.stride, dtype=value.dtype)
            return value

        args, kwargs = map_leaves(real, (call.args, call.kwargs))
        result = call.function(*args, **kwargs)
        for place, tensor in zip(call.makes, leaves_of(result), strict=False):
            if place is None:
                continue
            storage = tensor.untyped_storage()
            fits = tensor.stride() == place.stride and tensor.storage_offset() == place.offset
            if not fits or storage.nbytes() != self._bytes[place.storage]:
                storage = _allocate(self._bytes[place.storage])
                place.on(storage).copy_(tensor)
            made[place.storage] = storage

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        drawn, state = dict(self._drawn), torch.get_rng_state()
        try:
            yield
        except BaseException:
            self._drawn = drawn
            torch.set_rng_state(state)
            raise

    @contextlib.contextmanager
    def _drawing(self, position: int) -> Iterator[None]:
        if not self._calls[position].draws:
            yield
        elif position not in self._drawn:
            self._drawn[position] = torch.get_rng_state()
            yield
        else:
            state = torch.get_rng_state()
            torch.set_rng_state(self._drawn[position])
            try:
                yield
            finally:
                torch.set_rng_state(state)


def _allocate(nbytes: int) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu").untyped_storage()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Recorded calls mean what they meant, whatever the caller has switched on since."""
    dtype = torch.get_default_dtype()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch._C.DisableTorchFunction(),
    ):
        try:
            yield
        finally:
            if torch.get_default_dtype() is not dtype:
                torch.set_default_dtype(dtype)
