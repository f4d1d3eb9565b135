"""The index of a checkpoint in several files: which tensor lies in which. No torch is needed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from surgery.errors import CorruptFileError
from surgery.weights.header import RepeatedError, unrepeated

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


def shard_files(index: Path, table: Mapping[str, str]) -> list[Path]:
    """The shards that an index names, in its order.

    Args:
        index: a ``*.index.json``.
        table: what ``shard_names`` found in it.

    Raises:
        CorruptFileError: some are missing.
    """
    files = list(dict.fromkeys(table.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        what = (
            f"{len(missing)} of {len(files)} shards {'is' if len(missing) == 1 else 'are'} missing"
        )
        raise _broken(index, what, f"{len(files)} files", f"no {shown}{more}")
    return [index.parent / file for file in files]


def check_listed(
    index: Path, table: Mapping[str, str], there: Mapping[str, Collection[str]]
) -> None:
    """Refuse where a shard lacks a tensor that the index says it has.

    Args:
        index: a ``*.index.json``.
        table: what ``shard_names`` found in it.
        there: the names in each shard, by file name.

    Raises:
        CorruptFileError: names the first of them.
    """
    for name, file in table.items():
        if name not in there[file]:
            what = "a shard lacks a tensor that the index says it has"
            raise _broken(index, what, repr(name), file)


def unlisted(table: Mapping[str, str], there: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """A note on tensors that are in the shards and not where the index says; none, if all are.

    Args:
        table: file name by tensor name.
        there: the names in each shard, by file name.
    """
    names = [name for file, names in there.items() for name in names if table.get(name) != file]
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    said = f"in the shards and not where the index says, left out: {shown}"
    return (said,) if names else ()


def _broken(index: Path, what: str, expected: object, found: object) -> CorruptFileError:
    return CorruptFileError(what, where=str(index), expected=expected, found=found, fix=_AGAIN)
