"""Generators of broken files: each writes one, and names the error it has to give.

A generator gets an empty directory and returns the source to read. ``what`` is the whole first
line of the error, so that no two kinds of damage are told in the same words by accident.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgery.errors import AmbiguousWeightsError, CorruptFileError, WeightsError

STATE = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2))


@dataclass(frozen=True)
class Broken:
    """One kind of damage."""

    name: str
    make: Callable[[Path], Path]
    what: str
    error: type[WeightsError]


BROKEN: list[Broken] = []


def broken(what: str, error: type[WeightsError] = CorruptFileError) -> Callable[[Any], Any]:
    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        BROKEN.append(Broken(make.__name__, make, what, error))
        return make

    return register


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def legacy(folder: Path, content: Any = STATE) -> Path:
    torch.save(content, folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def zipped(folder: Path, content: Any = STATE) -> Path:
    torch.save(content, folder / "x.pth")
    return folder / "x.pth"


def repacked(
    path: Path,
    change: Callable[[dict[str, bytes]], Any],
    method: int = zipfile.ZIP_STORED,
    again: str | None = None,
) -> Path:
    """The same archive with other records; names without their folder."""
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in records.items():
            archive.writestr(f"x/{name}", data)
        if again is not None:
            archive.writestr(f"x/{again}", records[again])
    return path


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: object = None, dtype: object = "U8") -> dict[str, object]:
    sizes = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": sizes, "data_offsets": [begin, end]}


def pickled(folder: Path, *, storage: tuple[Any, ...] | None = None, **tensor: Any) -> Path:
    """A zip archive with one tensor whose pickle says what it is told to."""
    said = {"offset": 0, "size": (2, 3), "stride": (3, 1)} | tensor
    fields = ("storage", Named("torch FloatStorage"), "0", "cpu", 6)
    reference = Reference(storage or fields)
    call = Call(
        "torch._utils _rebuild_tensor_v2",
        (reference, said["offset"], said["size"], said["stride"], False, OrderedDict()),
    )
    data = Writer.dumps({"weight": call})
    return repacked(zipped(folder), lambda records: records.update({"data.pkl": data}))


@dataclass(frozen=True)
class Named:
    name: str


@dataclass(frozen=True)
class Reference:
    pid: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    name: str
    args: tuple[Any, ...]


class Writer(pickle._Pickler):
    """Writes names and references that Python would not let one write."""

    @classmethod
    def dumps(cls, value: object) -> bytes:
        file = io.BytesIO()
        cls(file, 2).dump(value)
        return file.getvalue()

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            module, _, name = obj.name.partition(" ")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Reference):
            self.save(obj.pid)
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Call):
            self.save(Named(obj.name))
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


# Any file.


@broken("the file is empty")
def empty(folder: Path) -> Path:
    return written(folder / "x.pth", b"")


@broken("there is no such file or directory", WeightsError)
def absent(folder: Path) -> Path:
    return folder / "x.pth"


@broken("this file is of no format that is known")
def other_magic(folder: Path) -> Path:
    return written(folder / "x.pth", bytes(range(100, 200)))


@broken("this is a web page: the download failed")
def web_page(folder: Path) -> Path:
    return written(folder / "x.safetensors", b"\n<!DOCTYPE html><title>404</title>")


@broken("this is a pointer of Git LFS, not the file itself")
def lfs_pointer(folder: Path) -> Path:
    return written(folder / "x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid")


@broken("this is an HDF5 file, as Keras writes")
def hdf5(folder: Path) -> Path:
    return written(folder / "x.h5", b"\x89HDF\r\n\x1a\n" + bytes(8))


@broken("this is a tar archive, or a checkpoint from before PyTorch 0.2")
def tar(folder: Path) -> Path:
    return written(folder / "x.pth", b"storages".ljust(257, b"\0") + b"ustar\0" + bytes(300))


@broken("this is a pickle that torch.save did not write; it was not opened")
def plain_pickle(folder: Path) -> Path:
    return written(folder / "x.pth", pickle.dumps({"weight": [1.0]}, 2))


@broken("this is JSON text, not a file of weights")
def json_text(folder: Path) -> Path:
    return written(folder / "x.pth", b'{"model_type": "x"}')


# Zip archives.


@broken("the file ends within its first bytes")
def zip_cut_at_once(folder: Path) -> Path:
    return written(folder / "x.pth", b"PK")


@broken("the archive has no readable directory at its end: it was probably cut short")
def zip_cut_short(folder: Path) -> Path:
    data = zipped(folder).read_bytes()
    return written(folder / "x.pth", data[: len(data) // 2])


@broken("this zip archive was not written by torch.save")
def zip_of_something_else(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("weight.npy", b"1")
    return folder / "x.pth"


@broken("this is a TorchScript program, not a file of weights")
def torchscript(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: records.update({"constants.pkl": b"."}))


@broken("the bytes of a tensor are missing")
def zip_without_a_storage(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: records.pop("data/1"))


@broken("the bytes of a tensor have another length than its pickle says")
def zip_with_a_short_storage(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: records.update({"data/1": b"1234"}))


@broken("a record stands twice in the archive")
def zip_with_a_record_twice(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: None, again="data/0")


@broken("the archive was packed again, with compression or a password")
def zip_packed_again(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: None, zipfile.ZIP_DEFLATED)


@broken("the order of bytes is unknown")
def zip_of_unknown_order(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: records.update({"byteorder": b"middle"}))


@broken("the record overlaps with 'x/data/0'")
def zip_with_overlapping_records(folder: Path) -> Path:
    path = repacked(zipped(folder), lambda records: None)
    with zipfile.ZipFile(path) as archive:
        first, second = archive.getinfo("x/data/0"), archive.getinfo("x/data/1")
    data = path.read_bytes()
    pointer = struct.pack("<L", second.header_offset)
    at = data.rindex(pointer)
    return written(path, data[:at] + struct.pack("<L", first.header_offset) + data[at + 4 :])


@broken("a record is not where it should be")
def zip_with_a_wild_offset(folder: Path) -> Path:
    path = repacked(zipped(folder), lambda records: None)
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo("x/data/1")
    data = path.read_bytes()
    at = data.rindex(struct.pack("<L", record.header_offset))
    return written(path, data[:at] + struct.pack("<L", record.header_offset + 7) + data[at + 4 :])


@broken("the record reaches beyond the end of the archive")
def zip_with_an_endless_record(folder: Path) -> Path:
    path = repacked(zipped(folder), lambda records: None)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 10**6)
    return written(path, bytes(data))


@broken("the pickle in this file is broken")
def zip_with_a_broken_pickle(folder: Path) -> Path:
    return repacked(zipped(folder), lambda records: records.update({"data.pkl": b"\x80\x02}q"}))


@broken("the tensor reaches beyond the end of its storage")
def zip_with_a_tensor_too_large(folder: Path) -> Path:
    return pickled(folder, size=(3, 3))


@broken("the tensor is malformed")
def zip_with_a_negative_stride(folder: Path) -> Path:
    return pickled(folder, stride=(-3, 1))


@broken("this holds no state dict", AmbiguousWeightsError)
def zip_with_a_tensor_alone(folder: Path) -> Path:
    return zipped(folder, torch.ones(2))


@broken("this holds no model's tensors", AmbiguousWeightsError)
def zip_without_tensors(folder: Path) -> Path:
    return zipped(folder, {"epoch": 3})


@broken("this holds no model's tensors, only state of training", AmbiguousWeightsError)
def optimizer_alone(folder: Path) -> Path:
    return zipped(folder, {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": []})


@broken(
    "2 entries hold a model's tensors, and nothing says which one is meant", AmbiguousWeightsError
)
def two_models(folder: Path) -> Path:
    return zipped(folder, {"model": STATE, "ema": STATE})


# The legacy format.


@broken("the file ends inside the bytes of its tensors")
def legacy_cut_short(folder: Path) -> Path:
    return written(folder / "x.pth", legacy(folder).read_bytes()[:-3])


@broken("the version of this file is unknown")
def legacy_of_another_version(folder: Path) -> Path:
    data = legacy(folder).read_bytes()
    return written(folder / "x.pth", data.replace(b"M\xe9\x03", b"M\xea\x03", 1))


@broken("the bytes of a storage have another length than its pickle says")
def legacy_with_a_wrong_length(folder: Path) -> Path:
    data = legacy(folder, {"bias": STATE["bias"]}).read_bytes()
    return written(folder / "x.pth", data[:-16] + struct.pack("<q", 5) + data[-8:])


@broken("the list of storages is malformed")
def legacy_with_a_storage_twice(folder: Path) -> Path:
    data = legacy(folder).read_bytes()
    start = data.rindex(b"\x80\x02]")
    end = data.index(b"e.", start) + 2
    keys = pickle.loads(data[start:end])
    return written(folder / "x.pth", data[:start] + pickle.dumps(keys[:1] * 2, 2) + data[end:])


# safetensors.


@broken("the file ends inside the length of its header")
def safetensors_of_five_bytes(folder: Path) -> Path:
    return written(folder / "x.safetensors", b"\x10\0\0\0\0")


@broken("the header is too long, or this is no safetensors file")
def header_too_long(folder: Path) -> Path:
    return written(folder / "x.safetensors", safetensors(b"{}", length=2**40))


@broken("the file ends inside its header")
def header_cut_short(folder: Path) -> Path:
    return written(folder / "x.safetensors", safetensors(b'{"a": ', length=500))


@broken("the header is no JSON object")
def header_is_a_list(folder: Path) -> Path:
    return written(folder / "x.safetensors", safetensors([1, 2]))


@broken("the header is no valid JSON")
def header_is_no_json(folder: Path) -> Path:
    return written(folder / "x.safetensors", safetensors(b'{"a": \xff}'))


@broken("a name stands twice in the header")
def name_twice(folder: Path) -> Path:
    one = json.dumps(entry(0, 1))
    return written(folder / "x.safetensors", safetensors(f'{{"a":{one},"a":{one}}}'.encode(), b"1"))


@broken("the header's __metadata__ is malformed")
def metadata_of_numbers(folder: Path) -> Path:
    header = {"__metadata__": {"epoch": 3}, "a": entry(0, 1)}
    return written(folder / "x.safetensors", safetensors(header, b"1"))


@broken("an entry of the header is malformed")
def entry_without_dtype(folder: Path) -> Path:
    header = {"a": {"shape": [1], "data_offsets": [0, 1]}}
    return written(folder / "x.safetensors", safetensors(header, b"1"))


@broken("the dtype is unknown")
def unknown_dtype(folder: Path) -> Path:
    header = {"a": entry(0, 1, dtype="F7")}
    return written(folder / "x.safetensors", safetensors(header, b"1"))


@broken("the shape is malformed")
def negative_shape(folder: Path) -> Path:
    header = {"a": entry(0, 1, shape=[-1, -1])}
    return written(folder / "x.safetensors", safetensors(header, b"1"))


@broken("the offsets are malformed")
def offsets_reversed(folder: Path) -> Path:
    header = {"a": entry(4, 0, shape=[4])}
    return written(folder / "x.safetensors", safetensors(header, b"1234"))


@broken("the tensor reaches beyond the end of the file")
def offset_out_of_range(folder: Path) -> Path:
    header = {"a": entry(0, 9)}
    return written(folder / "x.safetensors", safetensors(header, b"1234"))


@broken("the tensor has another number of bytes than its shape and dtype need")
def shape_and_bytes_disagree(folder: Path) -> Path:
    header = {"a": entry(0, 4, shape=[4], dtype="F32")}
    return written(folder / "x.safetensors", safetensors(header, b"1234"))


@broken("the tensor overlaps with 'a'")
def overlapping_offsets(folder: Path) -> Path:
    header = {"a": entry(0, 3), "b": entry(2, 4)}
    return written(folder / "x.safetensors", safetensors(header, b"1234"))


@broken("there is a gap between 'a' and the tensor")
def gap(folder: Path) -> Path:
    header = {"a": entry(0, 1), "b": entry(2, 4)}
    return written(folder / "x.safetensors", safetensors(header, b"1234"))


@broken("there are bytes behind the last tensor")
def bytes_left_over(folder: Path) -> Path:
    return written(folder / "x.safetensors", safetensors({"a": entry(0, 1)}, b"1234"))
