"""The header of a safetensors file: an eight-byte length, JSON, and then the tensors' bytes.

It is checked here, before anything is used, and without torch. What a reader has to refuse is
written down in the README and the ``attacks`` folder of the format's own repository,
``safetensors``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from surgery.errors import CorruptFileError
from surgery.weights.brief import brief
from surgery.weights.sizes import is_count, representable

# The limit of the format's own library.
LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Dtype:
    """What the elements of a tensor are.

    Attributes:
        name: what torch calls it: ``bfloat16``.
        itemsize: bytes of one element.
    """

    name: str
    itemsize: int


# By the name that the format has for it.
DTYPES = {
    "BOOL": Dtype("bool", 1),
    "U8": Dtype("uint8", 1),
    "I8": Dtype("int8", 1),
    "I16": Dtype("int16", 2),
    "U16": Dtype("uint16", 2),
    "I32": Dtype("int32", 4),
    "U32": Dtype("uint32", 4),
    "I64": Dtype("int64", 8),
    "U64": Dtype("uint64", 8),
    "F16": Dtype("float16", 2),
    "BF16": Dtype("bfloat16", 2),
    "F32": Dtype("float32", 4),
    "F64": Dtype("float64", 8),
    "C64": Dtype("complex64", 8),
    "F8_E4M3": Dtype("float8_e4m3fn", 1),
    "F8_E5M2": Dtype("float8_e5m2", 1),
    "F8_E4M3FNUZ": Dtype("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": Dtype("float8_e5m2fnuz", 1),
    "F8_E8M0": Dtype("float8_e8m0fnu", 1),
}


@dataclass(frozen=True, slots=True)
class Span:
    """What the header says of one tensor, checked.

    Attributes:
        dtype: of its elements.
        shape: its sizes.
        begin: its first byte, in the file.
        end: the byte behind its last.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says, checked.

    Attributes:
        spans: where each tensor lies, in the order of the header.
        metadata: its ``__metadata__``.
    """

    spans: dict[str, Span]
    metadata: dict[str, str]

    @property
    def mentioned(self) -> dict[str, str]:
        """Names that the metadata mentions as tied to a tensor, and that tensor.

        The format's own library stores tied tensors once, and mentions the names it left out.
        """
        return {
            name: kept
            for name, kept in self.metadata.items()
            if name not in self.spans and kept in self.spans
        }


def begins(head: bytes) -> bool:
    """Whether a file that begins so is a safetensors file, by its first nine bytes.

    The length of a header never fills its eight bytes, and text holds no zero byte.

    Example:
        >>> begins(bytes([80, 0, 0, 0, 0, 0, 0, 0]) + b"{"), begins(b"GIF89a...")
        (True, False)
    """
    return head[5:9] == b"\0\0\0{"


def parse(file: BinaryIO, size: int, where: str) -> Header:
    """Read and check the header.

    Args:
        file: the open file.
        size: its bytes.
        where: its path, for errors.

    Returns:
        The header.

    Raises:
        CorruptFileError: the header is cut short, too long or no JSON; a name is there twice; a
            dtype is unknown; or the tensors overlap, leave gaps, reach beyond the file, or have
            another number of bytes than their shape and dtype need.
    """
    file.seek(0)
    first = file.read(8)
    if len(first) < 8:
        raise _broken(
            where,
            "the file ends inside the length of its header",
            "8 bytes",
            f"{len(first)} bytes",
        )
    length = int.from_bytes(first, "little")
    if length > LONGEST_HEADER:
        raise _broken(
            where,
            "the header is too long, or this is no safetensors file",
            f"at most {LONGEST_HEADER:,} bytes",
            f"{length:,} bytes",
        )
    if 8 + length > size:
        raise _broken(
            where,
            "the file ends inside its header",
            f"{8 + length:,} bytes or more",
            f"{size:,} bytes",
        )
    text = file.read(length)
    entries = _entries(text, where)
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    spans = {
        name: _span(entry, f"{where}: {name!r}", 8 + length, size)
        for name, entry in entries.items()
    }
    _check_order(spans, 8 + length, size, where)
    return Header(spans, metadata)


class RepeatedError(ValueError):
    """A key stands twice in one JSON object."""


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(object_pairs_hook=)``: a dict, or an error where a key stands twice.

    Raises:
        RepeatedError: names the key.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RepeatedError(key)
        found[key] = value
    return found


def _entries(text: bytes, where: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _broken(where, "the header is no JSON object", "'{' first", repr(text[:8]))
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unrepeated)
    except RepeatedError as error:
        name = repr(str(error))
        raise _broken(where, "a name stands twice in the header", "each once", name) from error
    except (ValueError, RecursionError) as error:
        raise _broken(where, "the header is no valid JSON", "JSON in UTF-8", str(error)) from error
    if not isinstance(entries, dict):
        raise _broken(
            where, "the header is no JSON object", "a JSON object", type(entries).__name__
        )
    return entries


def _metadata(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise _broken(where, "the header's __metadata__ is malformed", "text by name", brief(value))
    return value


def _span(entry: object, where: str, start: int, size: int) -> Span:
    """One entry of the header, checked on its own."""
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != keys:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise _broken(where, "an entry of the header is malformed", sorted(keys), brief(found))
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _broken(
            where, "the dtype is unknown", f"one of {', '.join(DTYPES)}", brief(entry["dtype"])
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape) or not representable(tuple(shape)):
        raise _broken(where, "the shape is malformed", "sizes, 0 or more", brief(shape))
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(where, "the offsets are malformed", "begin <= end, 0 or more", brief(offsets))
    begin, end = offsets
    if start + end > size:
        raise _broken(
            where,
            "the tensor reaches beyond the end of the file",
            f"offsets up to {size - start:,}",
            f"{begin:,} to {end:,}",
        )
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise _broken(
            where,
            "the tensor has another number of bytes than its shape and dtype need",
            f"{needed:,} bytes for {entry['dtype']} {shape}",
            f"{end - begin:,} bytes",
        )
    return Span(dtype, tuple(shape), start + begin, start + end)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


def _check_order(spans: Mapping[str, Span], start: int, size: int, where: str) -> None:
    """The tensors fill the file, one after another."""
    reached, before = start, "the header"
    for name, span in sorted(spans.items(), key=lambda each: (each[1].begin, each[1].end)):
        if span.begin != reached:
            overlap = span.begin < reached
            raise _broken(
                f"{where}: {name!r}",
                f"the tensor overlaps with {before}"
                if overlap
                else f"there is a gap between {before} and the tensor",
                f"begin at {reached - start:,}",
                f"begin at {span.begin - start:,}",
            )
        reached, before = span.end, repr(name)
    if reached != size:
        raise _broken(
            where,
            "there are bytes behind the last tensor",
            f"{reached - start:,} bytes of tensors",
            f"{size - start:,} bytes",
        )


def _broken(where: str, what: str, expected: object, found: object) -> CorruptFileError:
    return CorruptFileError(
        what,
        where=where,
        expected=expected,
        found=found,
        fix="copy or download the file again; safetensors.torch.save_file writes a valid one",
    )
