"""What lies in a checkpoint, as plain data: for looking, not for loading.

``surgery.weights.read`` gives tensors, and takes torch. A safetensors file says what is in it by
its header alone, which is read here without torch: a file of any size costs what its header does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.shown import Shown
from surgery.weights import folders, header, index
from surgery.weights.paths import path_of

if TYPE_CHECKING:
    from surgery.families.registry import Registry
    from surgery.weights.value import Weights


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        shape: its sizes.
        dtype: of its elements, as torch calls it: ``bfloat16``.
        nbytes: what they take.
        aliases: other names that stand for the very same bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents(Shown):
    """What lies in a checkpoint.

    Attributes:
        origin: the path.
        format: ``safetensors``, ``pytorch zip`` and so on, as of ``Weights``.
        tensors: by name, in the order of the source.
        metadata: what else the file says, as text by name.
        chosen: which entry of a training checkpoint this is; None for the top.
        notes: what there is to say beside it.
    """

    origin: str
    format: str
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    chosen: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, those of aliases counted once."""
        return sum(entry.nbytes for _, entry in self.once())

    def once(self) -> Iterable[tuple[str, Entry]]:
        """Names and tensors without those that are aliases of one before."""
        seen: set[str] = set()
        for name, entry in self.tensors.items():
            if name not in seen:
                seen.update(entry.aliases)
                yield name, entry


def contents(
    source: str | os.PathLike[str],
    *,
    inside: str | None = None,
    registry: Registry | None = None,
) -> Contents:
    """Look into a checkpoint; a safetensors file, or shards of them, without importing torch.

    Args:
        source: a file, an ``*.index.json`` of shards, or a directory that holds one of these.
        inside: which entry of a training checkpoint to take, as in ``surgery.weights.read``.
        registry: plugins, whose weight readers are asked first.

    Returns:
        Names, shapes, dtypes, bytes and metadata. No tensor was read.

    Raises:
        WeightsError: there is no such file, or it is broken, refused or ambiguous, as
            ``surgery.weights.read`` would say.
        PluginError: a plugin's reader failed.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"fc.bias": torch.ones(2)}, f"{folder}/a.safetensors")
        ...     contents(f"{folder}/a.safetensors").tensors["fc.bias"]
        Entry(shape=(2,), dtype='float32', nbytes=8, aliases=())
    """
    path = path_of(source)
    notes: tuple[str, ...] = ()
    if path.is_dir():
        readers = registry.weight_readers if registry is not None else ()
        path, notes = folders.find(path, tuple(s for each in readers for s in each.suffixes))
    found = None
    if inside is None and (registry is None or registry.weight_reader(path) is None):
        found = _sharded(path) if path.name.endswith(index.SUFFIX) else _plain(path)
    if found is None:
        from surgery.weights.source import read

        found = contents_of(read(path, inside=inside, registry=registry))
    return replace(found, notes=found.notes + notes) if notes else found


def contents_of(weights: Weights) -> Contents:
    """The contents of weights that are open.

    Args:
        weights: what ``surgery.weights.read`` returned.
    """
    tensors = {
        name: Entry(info.shape, str(info.dtype).removeprefix("torch."), info.nbytes, info.aliases)
        for name, info in weights.tensors.items()
    }
    return Contents(
        weights.origin, weights.format, tensors, weights.metadata, weights.chosen, weights.notes
    )


def _plain(path: Path) -> Contents | None:
    """A safetensors file; None where it is none, cannot be opened, or holds nothing."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        file = path.open("rb")
    except (OSError, ValueError):
        # Whoever reads it for good says what is wrong.
        return None
    with file:
        if not header.begins(file.read(9)):
            return None
        found = header.parse(file, os.fstat(file.fileno()).st_size, str(path))
    tied: dict[str, list[str]] = {}
    for name, kept in found.mentioned.items():
        tied.setdefault(kept, []).append(name)
    tensors = {
        name: Entry(span.shape, span.dtype.name, span.end - span.begin, tuple(tied.get(name, ())))
        for name, span in found.spans.items()
    }
    return Contents(str(path), "safetensors", tensors, found.metadata) if tensors else None


def _sharded(path: Path) -> Contents | None:
    """An index of safetensors files; None where a shard is something else."""
    table = index.shard_names(path)
    files = dict(zip(dict.fromkeys(table.values()), index.shard_files(path, table), strict=True))
    shards = {name: _plain(file) for name, file in files.items()}
    there = {name: shard for name, shard in shards.items() if shard is not None}
    if len(there) < len(shards):
        return None
    index.check_listed(path, table, {name: shard.tensors for name, shard in there.items()})
    left_out = index.unlisted(table, {name: shard.tensors for name, shard in there.items()})
    return Contents(
        str(path),
        "sharded safetensors",
        {
            name: entry
            for file, shard in there.items()
            for name, entry in shard.tensors.items()
            if table.get(name) == file
        },
        {key: value for shard in there.values() for key, value in shard.metadata.items()},
        None,
        (f"{len(there)} shards", *left_out),
    )
