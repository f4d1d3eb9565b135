"""Open any source of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from surgery.errors import AmbiguousWeightsError, ArgumentError
from surgery.families.registry import Registry, check_registry
from surgery.weights import files, folders, memory, plugged, shards
from surgery.weights.index import SUFFIX
from surgery.weights.paths import path_of
from surgery.weights.value import TensorInfo, Weights

__all__ = ["TensorInfo", "Weights", "read"]


def read(
    source: object,
    *,
    mmap: bool = False,
    inside: str | None = None,
    registry: Registry | None = None,
) -> Weights:
    """Open a source of weights and look it over, without reading a tensor.

    A file's format is told by its bytes. Pickles are read without running anything they name,
    headers are checked before they are used.

    Args:
        source: a file of ``torch.save`` or safetensors, an ``*.index.json`` of shards, a
            directory that holds one of these, a mapping from names to tensors, a model, or
            ``Weights``, which are returned as they are.
        mmap: map files instead of copying what is read. Nothing is copied then, but a file that
            is cut short in place while it is mapped ends the process. What cannot be mapped (the
            legacy format, elements that start off their own size) is copied all the same.
        inside: which entry of a training checkpoint to take, by its path or the start of it:
            ``"ema"``; ``""`` is the top. Left out, the only one that holds a model's tensors.
        registry: plugins, whose weight readers are asked first.

    Returns:
        The lazy value: names, shapes, dtypes and bytes, and tensors by name when asked for.

    Raises:
        CorruptFileError: the file is broken, or of no format that is known.
        RefusedPickleError: the file asks for code to be run; the error lists what it names.
        AmbiguousWeightsError: several entries or files could be meant, or none holds weights.
        ChangedFileError: the file was written to meanwhile.
        WeightsError: there is no such file, or it cannot be opened.
        ArgumentError: the source is of no kind that can be read.
        PluginError: a plugin's reader failed.
        ClaimConflictError: two plugins' readers accept the file.
        UnsupportedModelError: the model is lazy, scripted or exported.

    Example:
        >>> import torch
        >>> from surgery.weights import read
        >>> weights = read({"state_dict": {"fc.bias": torch.ones(2)}, "epoch": 3})
        >>> weights.chosen, weights.notes, weights.tensors["fc.bias"].shape
        ('state_dict', ("beside 'state_dict': epoch=3",), (2,))
    """
    check_registry(registry)
    if isinstance(source, Weights):
        return _again(source, inside)
    if isinstance(source, nn.Module):
        return memory.of_model(source, inside)
    if isinstance(source, Mapping):
        return memory.of_mapping(source, inside)
    if isinstance(source, (str, os.PathLike)):
        return _at(path_of(source), mmap, inside, registry)
    raise ArgumentError(
        "weights cannot be read from this",
        where="source",
        expected="a path, a mapping from names to tensors, or a model",
        found=f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__,
        fix="read('weights.safetensors'), read(model.state_dict()) or read(model)",
    )


def _again(weights: Weights, inside: str | None) -> Weights:
    if inside is None or inside == (weights.chosen or ""):
        return weights
    raise AmbiguousWeightsError(
        "these weights were opened already, and another entry cannot be chosen any more",
        where=weights.origin,
        expected=repr(weights.chosen),
        found=repr(inside),
        fix=f"read({weights.origin!r}, inside={inside!r})",
    )


def _at(path: Path, mmap: bool, inside: str | None, registry: Registry | None) -> Weights:
    notes: tuple[str, ...] = ()
    if path.is_dir():
        readers = registry.weight_readers if registry is not None else ()
        path, notes = folders.find(path, tuple(s for each in readers for s in each.suffixes))
    reader = registry.weight_reader(path) if registry is not None else None
    if reader is not None:
        found = plugged.of_reader(reader, path, inside)
    elif path.name.endswith(SUFFIX):
        found = shards.of_index(path, lambda shard: files.of_file(shard, mmap, None), inside)
    else:
        found = files.of_file(path, mmap, inside)
    return replace(found, notes=found.notes + notes) if notes else found
