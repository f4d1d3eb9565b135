"""A directory: which checkpoint lies in it."""

from __future__ import annotations

from pathlib import Path

from surgery.errors import AmbiguousWeightsError, WeightsError
from surgery.weights import index

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
# What training scripts leave beside the weights.
_BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
_SHOWN = 10


def find(folder: Path, suffixes: tuple[str, ...] = ()) -> tuple[Path, tuple[str, ...]]:
    """The one checkpoint in a directory; what lies in directories below it does not count.

    An index stands for the shards it lists. Files of optimizers and random states are no
    checkpoints of a model.

    Args:
        folder: the directory.
        suffixes: of further formats, from plugins.

    Returns:
        Its path, and notes on what was passed over.

    Raises:
        AmbiguousWeightsError: there is none, or there are several, which are listed.
        CorruptFileError: an index cannot be read.
        WeightsError: the directory cannot be listed.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise WeightsError(
            "the directory cannot be listed",
            where=str(folder),
            found=error.strerror or str(error),
            fix="make it readable, or pass the path of a file",
        ) from error
    known = tuple({*_SUFFIXES, *(suffix.lower() for suffix in suffixes)})
    indices = [path for path in files if path.name.endswith(index.SUFFIX)]
    listed = {path.parent / name for path in indices for name in index.shard_names(path).values()}
    named = [path for path in files if path.name.lower().endswith(known) and path not in listed]
    beside = [path for path in named if path.name.lower().startswith(_BESIDE)]
    found = indices + [path for path in named if path not in beside]
    if len(found) == 1:
        names = ", ".join(path.name for path in beside)
        return found[0], ((f"in the same directory: {names}",) if beside else ())
    raise _several(folder, found) if found else _none(folder, files)


def _several(folder: Path, found: list[Path]) -> AmbiguousWeightsError:
    shards_alone = [path for path in found if "-of-" in path.stem]
    if shards_alone == found:
        what = "these shards have no index that says what lies in which"
        fix = f"download {folder.name}/*{index.SUFFIX} as well"
    else:
        what = f"there are {len(found)} checkpoints in this directory"
        fix = f"read({str(found[0])!r})"
    names = [path.name for path in found[:_SHOWN]]
    more = len(found) - _SHOWN
    return AmbiguousWeightsError(
        what,
        where=str(folder),
        expected="one checkpoint, or one index of shards",
        found=", ".join(names) + (f" and {more} more" if more > 0 else ""),
        fix=fix,
    )


def _none(folder: Path, files: list[Path]) -> AmbiguousWeightsError:
    if any(path.suffix == ".distcp" for path in files):
        return AmbiguousWeightsError(
            "this is a distributed checkpoint, which is not read here",
            where=str(folder),
            expected="a file of torch.save or safetensors",
            found="*.distcp",
            fix="dcp_to_torch_save(folder, path) of torch.distributed.checkpoint.format_utils",
        )
    names = ", ".join(path.name for path in files[:_SHOWN])
    return AmbiguousWeightsError(
        "there is no checkpoint in this directory",
        where=str(folder),
        expected=f"a file that ends in {', '.join(_SUFFIXES)} or {index.SUFFIX}",
        found=names or "no file",
        fix="pass the path of the file itself",
    )
