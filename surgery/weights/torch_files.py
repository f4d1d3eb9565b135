"""What ``torch.save`` writes: a zip archive, and the legacy format before PyTorch 1.6.

Both are a pickle that speaks of storages, and the storages' bytes at places that can be found
without reading them. Neither needs ``torch.load``, but for the rare tensors that only torch can
put together (sparse, quantized), and then with ``weights_only=True``.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from surgery.errors import CorruptFileError
from surgery.weights import pickled
from surgery.weights.brief import brief
from surgery.weights.pickled import Storage, Stored
from surgery.weights.sizes import is_count, representable
from surgery.weights.stored import Place

ZIP_MAGIC = b"PK\x03\x04"
# The first pickle of the legacy format: one long number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_AGAIN = "copy or download the file again; torch.save writes a valid one"
_LOCAL_HEADER = 30


@dataclass(frozen=True)
class Content:
    """What the pickle of a file says, and where the bytes are.

    Attributes:
        tree: its dicts and values, with ``Stored`` for tensors.
        locate: the place of one of these tensors, checked; None for a special one.
    """

    tree: Any
    locate: Callable[[str, Stored], Place | None]


@dataclass(frozen=True, slots=True)
class _Record:
    start: int
    size: int


def parse_zip(file: BinaryIO, where: str) -> Content:
    """Read the directory and the pickle of a zip archive.

    Args:
        file: the open file.
        where: its path, for errors.

    Returns:
        Its content.

    Raises:
        CorruptFileError: cut short, no archive of ``torch.save``, a record twice, compressed,
            overlapping or beyond the end, or a broken pickle.
        RefusedPickleError: its pickle names globals that are not needed for weights.
    """
    archive, folder = _directory(file, where)
    records = dict(_records(archive, file, where))
    data = _bytes(file, records, f"{folder}/data.pkl", where)
    order = "little"
    if f"{folder}/byteorder" in records:
        order = _bytes(file, records, f"{folder}/byteorder", where).decode("ascii", "replace")
        if order not in ("little", "big"):
            raise _broken(where, "the order of bytes is unknown", "little or big", repr(order))

    def find(name: str, storage: Storage) -> int:
        record = records.get(f"{folder}/data/{storage.key}")
        size = storage.numel * storage.dtype.itemsize
        if record is None:
            what = "the bytes of a tensor are missing"
            raise _broken(name, what, f"a record data/{storage.key}", "none")
        if record.size != size:
            what = "the bytes of a tensor have another length than its pickle says"
            raise _broken(name, what, f"{size:,} bytes", f"{record.size:,} bytes")
        return record.start

    return Content(pickled.load(data, where).content, _locator(find, order, where))


def _directory(file: BinaryIO, where: str) -> tuple[zipfile.ZipFile, str]:
    """The archive, and the folder in it that holds everything."""
    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
    except Exception as error:  # zipfile raises anything on a broken directory
        raise _broken(
            where,
            "the archive has no readable directory at its end: it was probably cut short",
            "a complete zip archive",
            f"{type(error).__name__}: {error}"[:200],
        ) from error
    if len(set(names)) != len(names):
        twice = repr(Counter(names).most_common(1)[0][0])
        raise _broken(where, "a record stands twice in the archive", "each once", twice)
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    folders = [name.partition("/")[0] for name in pickles]
    if any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names):
        raise CorruptFileError(
            "this is a TorchScript program, not a file of weights",
            where=where,
            expected="what torch.save(model.state_dict(), path) writes",
            found="constants.pkl in the archive",
            fix="read(torch.jit.load(path).state_dict())",
        )
    if len(folders) != 1:
        shown = ", ".join(map(repr, names[:5])) or "an empty archive"
        raise CorruptFileError(
            "this zip archive was not written by torch.save",
            where=where,
            expected="one data.pkl in it",
            found=f"{len(folders)} data.pkl among {shown}" if folders else shown,
            fix="torch.save(model.state_dict(), 'weights.pth')",
        )
    return archive, folders[0]


def _records(archive: zipfile.ZipFile, file: BinaryIO, where: str) -> Iterator[tuple[str, _Record]]:
    """Every record with the place of its bytes, none of which overlap."""
    reached, before = 0, "the start of the file"
    for info in sorted(archive.infolist(), key=lambda each: each.header_offset):
        name = info.filename
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CorruptFileError(
                "the archive was packed again, with compression or a password",
                where=f"{where}: {name!r}",
                expected="records as they are, as torch.save writes them",
                found=f"compression method {info.compress_type}",
                fix="unpack it and pack it again with zip -0 -r",
            )
        file.seek(max(info.header_offset, 0))
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or not header.startswith(ZIP_MAGIC):
            found = "something else"
            raise _broken(f"{where}: {name!r}", "a record is not where it should be", "it", found)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = info.header_offset + _LOCAL_HEADER + names
        if info.header_offset < reached:
            what = f"the record overlaps with {before}"
            found = f"begins at {info.header_offset:,}"
            raise _broken(f"{where}: {name!r}", what, f"begins at {reached:,} or later", found)
        reached, before = start + info.file_size, repr(name)
        if reached > archive.start_dir:
            what = "the record reaches beyond the end of the archive"
            found = f"ends at {reached:,}"
            raise _broken(f"{where}: {name!r}", what, f"ends by {archive.start_dir:,}", found)
        yield name, _Record(start, info.file_size)


def _bytes(file: BinaryIO, records: Mapping[str, _Record], name: str, where: str) -> bytes:
    record = records[name]
    file.seek(record.start)
    data = file.read(record.size)
    if len(data) != record.size:
        raise _broken(where, f"{name!r} is cut short", f"{record.size:,} bytes", f"{len(data):,}")
    return data


def parse_legacy(file: BinaryIO, size: int, where: str) -> Content:
    """Read the five pickles of the legacy format and find the bytes behind them.

    Args:
        file: the open file.
        size: its bytes.
        where: its path, for errors.

    Returns:
        Its content.

    Raises:
        CorruptFileError: cut short, of an unknown version, storages twice, missing or of another
            length than the pickle says, or a broken pickle.
        RefusedPickleError: a pickle names globals that are not needed for weights.
    """
    file.seek(0)
    number, version, system = (pickled.load(file, where).content for _ in range(3))
    if number != _LEGACY_NUMBER or version != _LEGACY_PROTOCOL:
        expected = f"protocol {_LEGACY_PROTOCOL}"
        raise _broken(where, "the version of this file is unknown", expected, brief(version))
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    said, keys = pickled.load(file, where), pickled.load(file, where).content
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys):
        raise _broken(where, "the list of storages is malformed", "each once", brief(keys))
    storages = {storage.key: storage for storage in reversed(said.storages)}
    starts: dict[str, int] = {}
    reached = file.tell()
    for key in map(str, keys):
        if key not in storages:
            # Nothing in the file uses it, so nothing says how long an element is.
            raise _broken(where, "a storage belongs to no tensor", "one that is used", repr(key))
        storage = storages[key]
        file.seek(reached)
        count = int.from_bytes(file.read(8), "little" if little else "big")
        if reached + 8 <= size and count != storage.numel:
            what = "the bytes of a storage have another length than its pickle says"
            raise _broken(f"{where}: {key!r}", what, f"{storage.numel:,}", f"{count:,} elements")
        starts[key] = reached + 8
        reached += 8 + storage.numel * storage.dtype.itemsize
        if reached > size:
            what = "the file ends inside the bytes of its tensors"
            raise _broken(where, what, f"{reached:,} bytes or more", f"{size:,} bytes")

    def find(name: str, storage: Storage) -> int:
        if storage.key not in starts:
            what = "the bytes of a tensor are missing"
            raise _broken(name, what, f"a storage {storage.key!r}", "none")
        first = storages[storage.key]
        if first.numel * first.dtype.itemsize != storage.numel * storage.dtype.itemsize:
            what = "two tensors do not agree on the size of the storage they share"
            raise _broken(name, what, f"{first.numel:,} elements", f"{storage.numel:,}")
        return starts[storage.key]

    return Content(said.content, _locator(find, "little" if little else "big", where))


def _locator(
    find: Callable[[str, Storage], int], order: str, where: str
) -> Callable[[str, Stored], Place | None]:
    """Turn what the pickle says of a tensor into a place, whatever it says."""

    def locate(name: str, tensor: Stored) -> Place | None:
        at = f"{where}: {name!r}"
        shape, stride = tensor.shape, tensor.stride
        dtype, storage = tensor.dtype, tensor.storage
        if not isinstance(dtype, torch.dtype) or not _sizes(shape) or not representable(shape):
            raise _broken(at, "the tensor is malformed", "a dtype and sizes", brief(shape))
        if tensor.special:
            return None
        good = isinstance(storage, Storage) and _sizes(stride) and len(stride) == len(shape)
        if not good or not isinstance(storage, Storage) or not _sizes((tensor.offset,)):
            what = "the tensor is malformed"
            raise _broken(at, what, "a storage, an offset and strides", brief(stride))
        width = dtype.itemsize
        place = Place(0, dtype, tuple(shape), tuple(stride), order)
        if not place.numel:
            return place
        start = find(at, storage)
        first = storage.base * storage.dtype.itemsize + tensor.offset * width
        last = (storage.base + storage.part) * storage.dtype.itemsize
        if first + place.extent * width > last:
            what = "the tensor reaches beyond the end of its storage"
            found = f"{first + place.extent * width:,} bytes"
            raise _broken(at, what, f"{last:,} bytes or less", found)
        return Place(start + first, dtype, tuple(shape), tuple(stride), order)

    return locate


def _sizes(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(map(is_count, value))


def _broken(where: str, what: str, expected: object, found: object) -> CorruptFileError:
    return CorruptFileError(what, where=where, expected=expected, found=found, fix=_AGAIN)
