"""A checkpoint in several files, and the lazy value of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from surgery.weights import nested
from surgery.weights.files import Combined
from surgery.weights.index import check_listed, shard_files, shard_names, unlisted
from surgery.weights.value import Weights


def of_index(
    index: Path, open_shard: Callable[[Path], Weights], inside: str | None = None
) -> Weights:
    """Open every shard that an index names, and look them over.

    Args:
        index: a ``*.index.json``.
        open_shard: opens one file.
        inside: nothing to choose in shards: an error unless None or ``""``.

    Returns:
        The lazy value; tensors in the order of the shards.

    Raises:
        CorruptFileError: the index is broken, shards are missing, or one lacks a tensor that the
            index says it has.
        AmbiguousWeightsError: ``inside`` names an entry.
        WeightsError: a shard cannot be opened.
    """
    table = shard_names(index)
    nested.choose(table, str, inside, str(index))
    files = dict(zip(dict.fromkeys(table.values()), shard_files(index, table), strict=True))
    shards = {name: open_shard(path) for name, path in files.items()}
    check_listed(index, table, {name: shard.tensors for name, shard in shards.items()})
    return _joined(index, table, shards)


def _joined(index: Path, table: Mapping[str, str], shards: Mapping[str, Weights]) -> Weights:
    tensors = {
        name: info
        for file, shard in shards.items()
        for name, info in shard.tensors.items()
        if table.get(name) == file
    }
    notes = [f"{len(shards)} shards", *unlisted(table, {f: s.tensors for f, s in shards.items()})]
    for file, shard in shards.items():
        notes += [f"{file}: {note}" for note in shard.notes]
    formats = {shard.format for shard in shards.values()}
    return Weights(
        str(index),
        f"sharded {formats.pop() if len(formats) == 1 else 'files of several formats'}",
        tensors,
        {key: value for shard in shards.values() for key, value in shard.metadata.items()},
        None,
        tuple(notes),
        Combined({name: shards[table[name]]._store for name in tensors}),
        {
            alias: name
            for shard in shards.values()
            for alias, name in shard._mentioned.items()
            if alias not in table
        },
    )
