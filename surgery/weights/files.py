"""One file: which format it is, by its bytes, and the lazy value of what lies in it."""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch

from surgery.errors import CorruptFileError, WeightsError
from surgery.weights import foreign, header, nested, safetensors_files, stored, torch_files
from surgery.weights.pickled import Stored
from surgery.weights.stored import FileStore, Place, Snapshot
from surgery.weights.value import Store, TensorInfo, Weights

_LEGACY = "legacy format: each tensor is copied when it is read, and never mapped"


def of_file(path: Path, mmap: bool, inside: str | None) -> Weights:
    """Open one file, find out its format and look it over.

    Args:
        path: a file of ``torch.save`` (zip or legacy) or safetensors, whatever it is called.
        mmap: map it instead of copying what is read.
        inside: which entry of a training checkpoint to take.

    Returns:
        The lazy value.

    Raises:
        WeightsError: it cannot be opened, is broken, refused or ambiguous, or changed meanwhile.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise WeightsError(
                "this is no file with contents",
                where=str(path),
                expected="a regular file",
                found="a device, a pipe or a socket",
                fix="copy it to a file first",
            )
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise WeightsError(
            "the file cannot be opened",
            where=str(path),
            found=getattr(error, "strerror", None) or str(error),
            fix="make it readable, or pass the path of another file",
        ) from error
    with file:
        seen = Snapshot.of(file)
        opened = _Opened(path, file, seen, mmap, inside)
        head = file.read(foreign.HEAD) or b""
        weights = _format(head, opened)(opened)
        stored.check_unchanged(path, seen, file)
    return weights


@dataclass(frozen=True)
class _Opened:
    path: Path
    file: BufferedReader
    seen: Snapshot
    mmap: bool
    inside: str | None

    @property
    def where(self) -> str:
        return str(self.path)


def _format(head: bytes, opened: _Opened) -> Callable[[_Opened], Weights]:
    size, where = opened.seen.size, opened.where
    if not head:
        raise CorruptFileError(
            "the file is empty",
            where=where,
            expected="a checkpoint",
            found="0 bytes",
            fix="copy or download the file again",
        )
    if head.startswith(torch_files.ZIP_MAGIC):
        return _zip
    if head.startswith(torch_files.LEGACY_MAGIC):
        return _legacy
    if header.begins(head):
        return _safetensors
    short = size < len(torch_files.LEGACY_MAGIC)
    if (short and torch_files.LEGACY_MAGIC.startswith(head)) or torch_files.ZIP_MAGIC.startswith(
        head
    ):
        raise CorruptFileError(
            "the file ends within its first bytes",
            where=where,
            expected="a complete file",
            found=f"{size} bytes",
            fix="copy or download the file again",
        )
    if opened.path.suffix.lower() == ".safetensors" and foreign.recognise(head) is None:
        return _safetensors
    raise foreign.refusal(head, size, where)


def _safetensors(opened: _Opened) -> Weights:
    found = header.parse(opened.file, opened.seen.size, opened.where)
    places = safetensors_files.places(found)
    nested.choose(places, Place, opened.inside, opened.where)
    tensors = stored.describe(places)
    for name, kept in found.mentioned.items():
        info = tensors[kept]
        tensors[kept] = TensorInfo(info.shape, info.dtype, info.nbytes, (*info.aliases, name))
    return Weights(
        opened.where,
        "safetensors",
        tensors,
        found.metadata,
        None,
        (),
        FileStore(opened.path, opened.seen, places, opened.mmap),
        found.mentioned,
    )


def _zip(opened: _Opened) -> Weights:
    content = torch_files.parse_zip(opened.file, opened.where)
    return _pickled("pytorch zip", opened, content, opened.mmap, ())


def _legacy(opened: _Opened) -> Weights:
    content = torch_files.parse_legacy(opened.file, opened.seen.size, opened.where)
    return _pickled("pytorch legacy", opened, content, False, (_LEGACY,))


def _pickled(
    kind: str,
    opened: _Opened,
    content: torch_files.Content,
    mmap: bool,
    notes: tuple[str, ...],
) -> Weights:
    choice = nested.choose(content.tree, Stored, opened.inside, opened.where)
    places: dict[str, Place] = {}
    special: dict[str, Stored] = {}
    for name, tensor in choice.entries.items():
        place = content.locate(name, tensor)
        if place is None:
            special[name] = tensor
        else:
            places[name] = place
    plain = stored.describe(places)
    tensors = {
        name: plain[name] if name in plain else _facts(tensor)
        for name, tensor in choice.entries.items()
    }
    store: Store = FileStore(opened.path, opened.seen, places, mmap)
    if special:
        rebuilt = _Rebuilt(opened.path, opened.seen, choice.path or "", special)
        store = Combined({name: store if name in places else rebuilt for name in tensors})
        kinds = ", ".join(sorted({tensor.special for tensor in special.values()}))
        notes += (f"{len(special):,} tensors ({kinds}) are read by torch.load, with all the file",)
    notes = choice.notes + notes
    return Weights(opened.where, kind, tensors, choice.metadata, choice.path, notes, store)


def _facts(tensor: Stored) -> TensorInfo:
    shape = tuple(tensor.shape)
    return TensorInfo(shape, tensor.dtype, math.prod(shape) * tensor.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class Combined:
    """Tensors that come from several stores, each of which is gone through once."""

    stores: Mapping[str, Store]

    def read(self, name: str) -> torch.Tensor:
        """One tensor from its store."""
        return self.stores[name].read(name)

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Store by store."""
        shares: dict[int, tuple[Store, list[str]]] = {}
        for name, store in self.stores.items():
            if name in names:
                shares.setdefault(id(store), (store, []))[1].append(name)
        for store, share in shares.values():
            yield from store.read_many(frozenset(share))


@dataclass(frozen=True, eq=False)
class _Rebuilt:
    """Tensors that are more than bytes with strides: torch puts them together."""

    path: Path
    seen: Snapshot
    inside: str
    special: Mapping[str, Stored]

    def read(self, name: str) -> torch.Tensor:
        return dict(self.read_many(frozenset({name})))[name]

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            if self.special[name].special == "meta":
                raise WeightsError(
                    "this tensor was saved without its values, from the meta device",
                    where=f"{self.path}: {name!r}",
                    expected="a tensor with values",
                    found="a shape and a dtype alone",
                    fix="save it from a model whose parameters are on a real device",
                )
        with stored.reopened(self.path, self.seen), warnings.catch_warnings():
            # What torch has to say of sparse tensors concerns whoever uses them.
            warnings.simplefilter("ignore")
            try:
                tree = torch.load(self.path, map_location="cpu", weights_only=True)
            except Exception as error:  # sizes and indices from a file can fail anywhere in torch
                raise CorruptFileError(
                    "torch cannot put this tensor together",
                    where=f"{self.path}: {min(names)!r}",
                    found=f"{type(error).__name__}: {error}"[:200],
                    fix="copy or download the file again",
                ) from error
        choice = nested.choose(tree, torch.Tensor, self.inside, str(self.path))
        for name, tensor in choice.entries.items():
            if name in names:
                yield name, tensor
