"""A checkpoint in several files: an index that says which tensor lies in which."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from surgery.errors import CorruptFileError
from surgery.weights import nested
from surgery.weights.files import Combined
from surgery.weights.safetensors_files import RepeatedError, unrepeated
from surgery.weights.value import Weights

SUFFIX = ".index.json"
_AGAIN = "copy or download the whole directory again"
_SHOWN = 5


def shard_names(index: Path) -> dict[str, str]:
    """Which file each tensor lies in, as the index says.

    Args:
        index: a ``*.index.json``.

    Returns:
        File name by tensor name.

    Raises:
        CorruptFileError: no JSON, no ``weight_map``, a name twice, or a file outside the
            directory of the index.
    """
    try:
        content = json.loads(index.read_text("utf-8"), object_pairs_hook=unrepeated)
    except RepeatedError as error:
        what = "a name stands twice in the index"
        raise _broken(index, what, "each once", repr(str(error))) from error
    except (OSError, ValueError, RecursionError) as error:
        what = "the index cannot be read as JSON"
        raise _broken(index, what, "JSON in UTF-8", str(error)) from error
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        found = f"the keys {', '.join(map(repr, content))}"[:200] if content else repr(content)
        raise _broken(index, "the index has no weight_map", "file names by tensor name", found)
    if not table:
        raise _broken(index, "the index lists no tensor", "file names by tensor name", "none")
    for name, file in table.items():
        parts = PurePosixPath(file.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in file:
            raise _broken(
                index, f"{name!r} lies outside the directory", "a file beside the index", repr(file)
            )
    return table


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
    files = list(dict.fromkeys(table.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        what = (
            f"{len(missing)} of {len(files)} shards {'is' if len(missing) == 1 else 'are'} missing"
        )
        raise _broken(index, what, f"{len(files)} files", f"no {shown}{more}")
    shards = {file: open_shard(index.parent / file) for file in files}
    for name, file in table.items():
        if name not in shards[file].tensors:
            raise _broken(
                index, "a shard lacks a tensor that the index says it has", repr(name), file
            )
    return _joined(index, table, shards)


def _joined(index: Path, table: Mapping[str, str], shards: Mapping[str, Weights]) -> Weights:
    tensors = {
        name: info
        for file, shard in shards.items()
        for name, info in shard.tensors.items()
        if table.get(name) == file
    }
    unlisted = [
        name for file, shard in shards.items() for name in shard.tensors if table.get(name) != file
    ]
    notes = [f"{len(shards)} shards"]
    if unlisted:
        shown = ", ".join(unlisted[:_SHOWN]) + (", ..." if len(unlisted) > _SHOWN else "")
        notes.append(f"in the shards and not where the index says, left out: {shown}")
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


def _broken(index: Path, what: str, expected: object, found: object) -> CorruptFileError:
    return CorruptFileError(what, where=str(index), expected=expected, found=found, fix=_AGAIN)
