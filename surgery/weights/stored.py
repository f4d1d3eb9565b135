"""Tensors in a file: where each lies, and how its bytes get into memory.

Every format that torch writes comes down to the same: a tensor is a run of bytes in a file, with
a dtype, a shape and strides. Whoever knows the places needs no format any more.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

import torch

from surgery.errors import ChangedFileError, WeightsError
from surgery.weights.filling import Filler
from surgery.weights.sizes import contiguous
from surgery.weights.value import TensorInfo

# Bytes that are read before anybody asks for them: enough to keep the threads at work.
AHEAD = 32 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor lies in a file.

    Attributes:
        start: the first byte of its first element.
        dtype: of its elements.
        shape: its sizes.
        stride: its strides, in elements.
        order: the order of the bytes of an element, ``little`` or ``big``.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    order: str = "little"

    @property
    def extent(self) -> int:
        """Elements from the first to the last, those between that are not its own included."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def describe(places: Mapping[str, Place]) -> dict[str, TensorInfo]:
    """The facts of stored tensors; those at the same place are aliases.

    Example:
        >>> place = Place(64, torch.float32, (2,), (1,))
        >>> describe({"a": place, "b": place})["a"].aliases
        ('b',)
    """
    same: dict[Place, list[str]] = {}
    for name, place in places.items():
        if place.numel:
            same.setdefault(place, []).append(name)
    return {
        name: TensorInfo(
            place.shape,
            place.dtype,
            place.numel * place.dtype.itemsize,
            tuple(other for other in same.get(place, ()) if other != name),
        )
        for name, place in places.items()
    }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What shows that a file is another one, or was written to."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, file: BinaryIO | FileIO) -> Snapshot:
        """The state of an open file."""
        facts = os.fstat(file.fileno())
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@contextmanager
def reopened(path: Path, seen: Snapshot) -> Iterator[FileIO]:
    """Open a file again and refuse where it is no longer the same, before and after.

    Raises:
        ChangedFileError: it is gone, replaced or written to.
    """
    try:
        file = FileIO(path)
    except OSError as error:
        raise changed(path, f"it cannot be opened any more: {error.strerror or error}") from error
    with file:
        check_unchanged(path, seen, file)
        yield file
        check_unchanged(path, seen, file)


def check_unchanged(path: Path, seen: Snapshot, file: BinaryIO | FileIO) -> None:
    """Refuse where an open file is no longer as it was seen.

    Raises:
        ChangedFileError: it was replaced or written to.
    """
    now = Snapshot.of(file)
    if now == seen:
        return
    if (now.device, now.inode) != (seen.device, seen.inode):
        found = "another file in its place"
    elif now.size != seen.size:
        found = f"{now.size:,} bytes, {seen.size:,} when it was opened"
    else:
        found = "the same size, written to since"
    raise changed(path, found)


def changed(path: Path, found: str) -> ChangedFileError:
    """The error for a file that is no longer as it was."""
    return ChangedFileError(
        "the file changed after it was opened",
        where=str(path),
        expected="the file as it was",
        found=found,
        fix="weights = surgery.weights.read(path) again, when nobody writes to it",
    )


@dataclass(frozen=True, eq=False)
class FileStore:
    """The tensors of one file.

    Attributes:
        path: the file.
        seen: how it was when the places were found.
        places: where each tensor lies.
        mmap: map the file instead of copying from it.
    """

    path: Path
    seen: Snapshot
    places: Mapping[str, Place]
    mmap: bool = False

    def read(self, name: str) -> torch.Tensor:
        """One tensor: a private copy, or on the map."""
        with self._open() as (_, filler):
            return self._begin(filler, self.places[name]).tensor()

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors in the order of their bytes; those at one place are one tensor."""
        asked = [(name, place) for name, place in self.places.items() if name in names]
        asked.sort(key=lambda each: each[1].start)
        uses: dict[Place, int] = {}
        for _, place in asked:
            uses[place] = uses.get(place, 0) + 1
        kept: dict[Place, torch.Tensor] = {}
        with self._open() as (file, filler):
            # Aliases come once; what is empty has no bytes to share.
            once = {place if place.numel else name: place for name, place in asked}
            ahead = _Ahead(once.values(), partial(self._begin, filler))
            for name, place in asked:
                tensor = kept.get(place)
                if tensor is None:
                    tensor = ahead.take()
                    check_unchanged(self.path, self.seen, file)
                # Kept no longer than another alias is to come.
                uses[place] -= 1
                if uses[place] and place.numel:
                    kept[place] = tensor
                else:
                    kept.pop(place, None)
                yield name, tensor

    @contextmanager
    def _open(self) -> Iterator[tuple[FileIO, Filler]]:
        def short(missing: int) -> Exception:
            return changed(self.path, f"it ends {missing:,} bytes before this tensor does")

        with reopened(self.path, self.seen) as file, Filler(file, short) as filler:
            yield file, filler

    def _begin(self, filler: Filler, place: Place) -> _Coming:
        # What is made under inference mode could never be trained.
        with torch.inference_mode(False):
            native = place.order == sys.byteorder or place.dtype.itemsize == 1
            if self.mmap and native and place.numel and not place.start % place.dtype.itemsize:
                return _Coming(place, self._mapped(place), read=False)
            flat = torch.empty(place.extent, dtype=place.dtype, device="cpu")
            return _Coming(place, flat, filler.start(place.start, flat) if place.numel else [])

    def _mapped(self, place: Place) -> torch.Tensor:
        size = place.extent * place.dtype.itemsize
        storage = self._map[place.start : place.start + size]
        empty = torch.empty(0, dtype=place.dtype, device="cpu")
        return empty.set_(storage, 0, place.shape, place.stride)

    @cached_property
    def _map(self) -> torch.UntypedStorage:
        try:
            mapped = torch.UntypedStorage.from_file(os.fspath(self.path), False, self.seen.size)
            return cast(torch.UntypedStorage, mapped)
        except (RuntimeError, UnicodeError) as error:
            raise WeightsError(
                "the file cannot be mapped",
                where=str(self.path),
                found=str(error).partition("\n")[0],
                fix="mmap=False, which copies what is read",
            ) from error


@dataclass(frozen=True, eq=False, slots=True)
class _Coming:
    """A tensor whose bytes are on their way.

    Attributes:
        place: where it lies in the file.
        flat: its memory, or the tensor itself where that is mapped.
        parts: what to wait for.
        read: whether bytes are read; not so on a map.
    """

    place: Place
    flat: torch.Tensor
    parts: Sequence[Future[None]] = ()
    read: bool = True

    def tensor(self) -> torch.Tensor:
        """The tensor, once it is there."""
        for part in self.parts:
            part.result()
        if not self.read:
            return self.flat
        with torch.inference_mode(False):
            return _shaped(self.place, self.flat)


class _Ahead:
    """Begins with the next tensors while one is in use; no more of them than fit in ``AHEAD``.

    Args:
        places: in the order in which they will be taken.
        begin: begins to read what lies at a place.
    """

    def __init__(self, places: Iterable[Place], begin: Callable[[Place], _Coming]) -> None:
        self._pending = deque(places)
        self._begin = begin
        self._coming: deque[_Coming] = deque()
        self._bytes = 0

    def take(self) -> torch.Tensor:
        """The tensor at the next place."""
        while self._pending and (not self._coming or self._bytes < AHEAD):
            self._coming.append(self._begin(self._pending.popleft()))
            self._bytes += _size(self._coming[-1])
        first = self._coming.popleft()
        self._bytes -= _size(first)
        return first.tensor()


def _size(coming: _Coming) -> int:
    return coming.place.extent * coming.place.dtype.itemsize if coming.read else 0


def _shaped(place: Place, flat: torch.Tensor) -> torch.Tensor:
    """The bytes that were read as the tensor that they are."""
    if not place.numel:
        return flat.new_empty(place.shape)
    if place.order != sys.byteorder:
        width = place.dtype.itemsize // (2 if place.dtype.is_complex else 1)
        each = flat.view(torch.uint8).view(-1, width)
        each.copy_(each.flip(1))
    if place.stride == contiguous(place.shape):
        return flat.view(place.shape)
    tensor = flat.as_strided(place.shape, place.stride)
    # Gaps and overlaps are the file's: what a caller writes to must be the tensor's own.
    return (
        tensor
        if fills(place.shape, place.stride)
        else tensor.clone(memory_format=torch.contiguous_format)
    )


def fills(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether elements lie without gap or overlap, in whatever order of axes.

    Example:
        >>> fills((2, 3), (1, 2)), fills((2, 3), (4, 1))
        (True, False)
    """
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True
