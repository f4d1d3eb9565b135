"""Write a safetensors file so that nobody ever finds half of one.

The bytes are laid out here and not by the format's own library, which writes the entries of the
metadata in another order each time: the same model is the same file, byte for byte. Tensors go
out one after another, so that writing takes no more memory than the largest of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from surgery.errors import ArgumentError, WeightsError
from surgery.weights.destination import check_destination, is_path, placed
from surgery.weights.header import LONGEST_HEADER
from surgery.weights.safetensors_files import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
_CHUNK = 1 << 24


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write tensors to a safetensors file, all of it or nothing.

    The file grows under another name beside its destination (``NAME.*.part``), goes to the disk,
    and is renamed. Whenever the process ends, the destination holds the old file or the new one.

    Args:
        path: the destination; where it is a link, what it leads to.
        tensors: the tensors by name, of any device and strides; each is written out in order.
        metadata: texts by name.
        overwrite: replace a file that is there.

    Returns:
        The path of the file.

    Raises:
        ArgumentError: a tensor or a name that the format cannot hold, or metadata that is no text.
        WeightsError: there is a file already, no directory, no permission or no space left.

    Example:
        >>> import tempfile
        >>> from surgery.weights import read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write(f"{folder}/a.safetensors", {"w": torch.ones(2)}, {"by": "me"})
        ...     read(path).metadata, read(path).read("w")
        ({'by': 'me'}, tensor([1., 1.]))
    """
    target = Path(path).resolve() if is_path(path) else Path()
    check_destination(path, overwrite)
    for name, tensor in tensors.items():
        _check_storable(name, tensor)
    # The widest elements first, and each begins at a multiple of its own size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _header({name: tensors[name] for name in order}, metadata, str(target))
    with placed(target, overwrite) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            for part in _bytes(tensors[name]):
                file.write(part)
    return target


def _check_storable(name: object, tensor: torch.Tensor) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise ArgumentError(
            "a tensor in a safetensors file cannot have this name",
            where=repr(name),
            expected="text other than '__metadata__'",
            found=type(name).__name__,
            fix="rename it",
        )
    what = None
    if tensor.is_meta:
        what = "it is on meta and has no values"
    elif tensor.is_quantized or tensor.layout != torch.strided:
        what = f"{tensor.dtype}, {tensor.layout}"
    elif tensor.dtype not in _NAMES:
        what = str(tensor.dtype)
    if what is not None:
        raise ArgumentError(
            "the safetensors format cannot hold this tensor",
            where=name,
            expected=f"a dense tensor with values, of {', '.join(_NAMES.values())}",
            found=what,
            fix="torch.save(model.state_dict(), 'model.pt')",
        )


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], where: str) -> bytes:
    wrong = [k for k, v in metadata.items() if not isinstance(k, str) or not isinstance(v, str)]
    if wrong:
        raise ArgumentError(
            "the metadata of a safetensors file are texts",
            where=f"metadata[{wrong[0]!r}]",
            expected="str",
            found=type(metadata[wrong[0]]).__name__,
            fix="json.dumps(value)",
        )
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name, tensor in tensors.items():
        end = reached + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [reached, end],
        }
        reached = end
    text = json.dumps(entries, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > LONGEST_HEADER:
        raise WeightsError(
            "the header of this file would be too long for a safetensors file",
            where=where,
            expected=f"at most {LONGEST_HEADER:,} bytes",
            found=f"{len(text):,} bytes",
            fix="torch.save(model.state_dict(), 'model.pt')",
        )
    return text


def _bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in order, a piece at a time."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    if sys.byteorder == "big" and tensor.element_size() > 1:
        width = tensor.element_size() // (2 if tensor.is_complex() else 1)
        flat = flat.view(torch.uint8).view(-1, width).flip(1).contiguous().view(-1)
    size = flat.numel() * flat.element_size()
    if not size:
        return
    whole = memoryview((ctypes.c_char * size).from_address(flat.data_ptr())).cast("B")
    for start in range(0, size, _CHUNK):
        # The tensor lives as long as this generator does, and its memory with it.
        yield whole[start : start + _CHUNK]
