"""How bytes of a file get into memory: each copied once, several at a time, ahead of their use.

Fresh memory is made page by page while it is written to, which costs more than the copying. Several
threads share that, the system is asked for whole runs of pages where it can give them, and while
one tensor is in use the next ones are on their way.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from io import FileIO

import torch

# One thread's share of a tensor, and what is not worth a thread.
CHUNK = 4 << 20
SMALL = 1 << 19
THREADS = min(8, os.cpu_count() or 1)

# Not every system reads at a place without moving there, which threads would do to each other.
ANYWHERE = hasattr(os, "preadv")

# Of Linux 5.14 and later, in <asm-generic/mman-common.h>: make the pages now, all of them.
_POPULATE_WRITE = 23


class Filler:
    """Reads runs of bytes of one open file into tensors, on threads that end with it.

    Args:
        file: the file, open for as long as this is used.
        short: makes the error for a file that ends too early, given how many bytes are missing.
    """

    def __init__(self, file: FileIO, short: Callable[[int], Exception]) -> None:
        self._file = file
        self._short = short

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS)

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, *_: object) -> None:
        # Nobody writes into memory, or reads from a file, that is given back.
        if "_threads" in vars(self):
            self._threads.shutdown(wait=True, cancel_futures=True)

    def start(self, offset: int, flat: torch.Tensor) -> list[Future[None]]:
        """Begin to read into a tensor.

        Args:
            offset: of the first byte in the file.
            flat: contiguous, on the CPU; kept by the caller until all is read.

        Returns:
            What to wait for; nothing where it has been read already.
        """
        size = flat.numel() * flat.element_size()
        space = memoryview((ctypes.c_char * size).from_address(flat.data_ptr())).cast("B")
        if size <= SMALL or THREADS == 1 or not ANYWHERE:
            self._fill(space, offset)
            return []
        # As even as can be, so that no thread waits for the last one.
        step = -(-size // (-(-size // CHUNK) if size > CHUNK else min(2, THREADS)))
        return [
            self._threads.submit(self._fill, space[begin : begin + step], offset + begin)
            for begin in range(0, size, step)
        ]

    def _fill(self, left: memoryview, place: int) -> None:
        populate(left)
        while left:
            count = read_at(self._file, left, place)
            if not count:
                raise self._short(len(left))
            left, place = left[count:], place + count


def read_at(file: FileIO, left: memoryview, place: int) -> int:
    """Read bytes from a place in a file, as many as come at once."""
    if ANYWHERE:
        return os.preadv(file.fileno(), [left], place)
    file.seek(place)
    return file.readinto(left) or 0


def populate(space: memoryview) -> None:
    """Ask the system for the pages of a stretch of memory in one go; it may decline."""
    advise = _advise()
    if advise is None or len(space) < SMALL:
        return
    page = os.sysconf("SC_PAGESIZE")
    first = ctypes.addressof(ctypes.c_char.from_buffer(space))
    begin, end = -(-first // page) * page, (first + len(space)) // page * page
    advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _POPULATE_WRITE)


@cache
def _advise() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
