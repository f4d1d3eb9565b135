"""TARGET: a catalog name, ``package.module:callable``, or the path of a checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.cli import plugged
from surgery.errors import ArgumentError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from surgery.weights.value import Weights

# What a name has that is meant as a path, whether or not there is such a file.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".json")


def is_path(target: str) -> bool:
    """Whether a TARGET is a file or a directory, or is spelt like one.

    Args:
        target: what was given.

    Raises:
        ArgumentError: there is a directory and a model in a catalog of this very name.

    Example:
        >>> is_path("torch.nn:Linear"), is_path("model.safetensors"), is_path("./model")
        (False, True, True)
    """
    if "/" in target or os.sep in target or target.lower().endswith(_SUFFIXES):
        return True
    if not os.path.lexists(target):
        return False
    names = [name for name in plugged.registry().catalog_names if target in _names(name)]
    if names:
        raise ArgumentError(
            "this is a file or directory here, and a model in a catalog",
            where="TARGET",
            expected="a name that is one of them",
            found=target,
            fix=f"./{target} or {names[0]}",
        )
    return True


def _names(name: str) -> tuple[str, str]:
    return name, name.partition(":")[2]


def weights_of(target: str) -> Weights:
    """The tensors of a TARGET that is a checkpoint, with none of them read.

    Args:
        target: what was given.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
        ArgumentError: it is the name of a model.
    """
    if not is_path(target):
        raise ArgumentError(
            "this is no checkpoint",
            where="TARGET",
            expected="a file of torch.save or safetensors, an *.index.json, or a directory",
            found=target,
            fix=f"./{target}, if a file is meant",
        )
    from surgery.weights import read

    return read(target, registry=plugged.registry())


def model_of(
    target: str,
    *,
    saved_with: str | None = None,
    num_classes: int | None = None,
    values: bool = False,
) -> nn.Module:
    """The model of a TARGET.

    Args:
        target: what was given: a name, or a file that ``surgery.save`` wrote.
        saved_with: for such a file, the name of what makes the model, where the file does not
            say so itself (``--target``).
        num_classes: handed to what builds the model.
        values: whether its parameters need values; on ``meta``, if not.

    Raises:
        SurgeryError: no such name or file, it cannot be built, or the file alone makes no model.
    """
    from surgery.operations.build import build, constructed
    from surgery.operations.target import resolve_target

    _find_modules_here()
    plugins = plugged.registry()
    if is_path(target):
        return _restored(target, saved_with)
    if values:
        return build(target, num_classes=num_classes, registry=plugins).model
    options: dict[str, Any] = {}
    deferred, _ = constructed(resolve_target(target, plugins), num_classes, options)
    return deferred.model


def _restored(path: str, saved_with: str | None) -> nn.Module:
    from surgery.operations.restore import restore

    if saved_with is None:
        raise ArgumentError(
            "a checkpoint holds tensors, and this needs the model they belong to",
            where=path,
            expected="what makes the model: a catalog name or package.module:callable",
            found="a checkpoint",
            fix=f"surgery inspect {path}, or the same command with --target package:name",
        )
    return restore(saved_with, path, mmap=True, registry=plugged.registry()).model


def _find_modules_here() -> None:
    """Let ``package.module`` be looked for where the command is called, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def tensor_of(shape: tuple[int, ...] | None) -> torch.Tensor | None:
    """An input of a shape, on meta; None where none was given."""
    import torch

    return None if shape is None else torch.empty(shape, device="meta")
