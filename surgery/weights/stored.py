"""Tensors in a file: where each lies, and how its bytes get into memory.

Every format that torch writes comes down to the same: a tensor is a run of bytes in a file, with
a dtype, a shape and strides. Whoever knows the places needs no format any more.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

import torch

from surgery.errors import ChangedFileError, WeightsError
from surgery.weights.value import TensorInfo

LARGEST = 2**63 - 1


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


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor whose elements lie in order.

    Example:
        >>> contiguous((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_count(value: object) -> bool:
    """Whether a value from a file is a number of things: whole, not negative, not absurd.

    Example:
        >>> is_count(3), is_count(True), is_count(-1), is_count(2**63)
        (True, False, False, False)
    """
    return type(value) is int and 0 <= value <= LARGEST


def representable(shape: tuple[int, ...]) -> bool:
    """Whether torch can have a tensor of this shape at all.

    An empty one may have any other sizes, and torch still multiplies them.

    Example:
        >>> representable((0, 5)), representable((0, 2**40, 2**40))
        (True, False)
    """
    return math.prod(size or 1 for size in shape) <= LARGEST


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
        with reopened(self.path, self.seen) as file:
            return self._read(file, self.places[name])

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors in the order of their bytes; those at one place are one tensor."""
        asked = [(name, place) for name, place in self.places.items() if name in names]
        asked.sort(key=lambda each: each[1].start)
        uses: dict[Place, int] = {}
        for _, place in asked:
            uses[place] = uses.get(place, 0) + 1
        kept: dict[Place, torch.Tensor] = {}
        with reopened(self.path, self.seen) as file:
            for name, place in asked:
                tensor = kept.get(place)
                if tensor is None:
                    tensor = self._read(file, place)
                    check_unchanged(self.path, self.seen, file)
                # Kept no longer than another alias is to come: one tensor at a time in memory.
                uses[place] -= 1
                if uses[place] and place.numel:
                    kept[place] = tensor
                else:
                    kept.pop(place, None)
                yield name, tensor

    def _read(self, file: FileIO, place: Place) -> torch.Tensor:
        # What is made under inference mode could never be trained.
        with torch.inference_mode(False):
            native = place.order == sys.byteorder or place.dtype.itemsize == 1
            if self.mmap and native and place.numel and not place.start % place.dtype.itemsize:
                return self._mapped(place)
            return _copied(self.path, file, place)

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


def _copied(path: Path, file: FileIO, place: Place) -> torch.Tensor:
    if not place.numel:
        return torch.empty(place.shape, dtype=place.dtype, device="cpu")
    flat = torch.empty(place.extent, dtype=place.dtype, device="cpu")
    _fill(path, file, place.start, flat)
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


# Fresh memory is made page by page while it is filled: large tensors gain by several threads.
_CHUNK = 4 << 20
_THREADS = min(8, os.cpu_count() or 1)


def _fill(path: Path, file: FileIO, start: int, flat: torch.Tensor) -> None:
    """Read straight into the tensor's memory, so that each byte is copied once."""
    size = flat.numel() * flat.element_size()
    space = memoryview((ctypes.c_char * size).from_address(flat.data_ptr())).cast("B")

    def fill(offset: int) -> None:
        left, place = space[offset : offset + _CHUNK], start + offset
        while left:
            count = _read_at(file, left, place)
            if not count:
                raise changed(path, f"it ends {len(left):,} bytes before this tensor does")
            left, place = left[count:], place + count

    chunks = range(0, size, _CHUNK)
    if len(chunks) < 2 * _THREADS or not _ANYWHERE:
        for chunk in chunks:
            fill(chunk)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(fill, chunks):
            continue


# Not every system reads at a place without moving there, which threads would do to each other.
_ANYWHERE = hasattr(os, "preadv")


def _read_at(file: FileIO, left: memoryview, place: int) -> int:
    if _ANYWHERE:
        return os.preadv(file.fileno(), [left], place)
    file.seek(place)
    return file.readinto(left) or 0
