"""Open any source of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from surgery.errors import ArgumentError
from surgery.weights import memory
from surgery.weights.value import TensorInfo, Weights

if TYPE_CHECKING:
    from surgery.families.registry import Registry

__all__ = ["TensorInfo", "Weights", "read"]


def read(
    source: object,
    *,
    mmap: bool = False,
    inside: str | None = None,
    registry: Registry | None = None,
) -> Weights:
    """Open a source of weights and look it over, without reading a tensor.

    Args:
        source: a file, a directory, a mapping from names to tensors, a model, or ``Weights``.
        mmap: map files instead of copying what is read. Nothing is copied then, but a file that
            is cut short in place while it is mapped ends the process.
        inside: which entry of a training checkpoint to take, ``"ema"``; ``""`` is the top.
        registry: plugins whose readers know further formats.

    Returns:
        The lazy value.

    Raises:
        WeightsError: nothing can be read there; its subclasses say why.
        ArgumentError: the source is of no kind that can be read.

    Example:
        >>> import torch
        >>> from surgery.weights import read
        >>> read({"state_dict": {"fc.bias": torch.ones(2)}, "epoch": 3}).chosen
        'state_dict'
    """
    if isinstance(source, nn.Module):
        return memory.of_model(source, inside)
    if isinstance(source, Mapping):
        return memory.of_mapping(source, inside)
    raise ArgumentError(
        "weights cannot be read from this",
        where="source",
        expected="a path, a mapping from names to tensors, or a model",
        found=type(source).__name__,
        fix="read('weights.safetensors')",
    )
