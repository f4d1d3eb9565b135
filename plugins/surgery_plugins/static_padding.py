"""Convolutions that pad as TensorFlow does, by a module made for one size of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from surgery.families.resizing import Exchanged, Fixed, Follower


def resize(model: Any, size: tuple[int, int]) -> Iterator[Follower]:
    """As much padding as every convolution needs for ``ceil(size / stride)`` cells.

    Layers stand in the order of execution; those between a pooling and its gate have kernels of
    one cell, and never pad.

    Args:
        model: a network of such convolutions, one behind the other.
        size: height and width of the images.

    Returns:
        What follows; nothing where the padding is worked out anew in every pass.
    """
    from torch import nn

    if getattr(model._global_params, "image_size", None) is None:
        return
    yield Fixed("", "_global_params.image_size", size[0] if size[0] == size[1] else list(size))
    lengths = list(size)
    for address, layer in model.named_modules():
        if not hasattr(layer, "static_padding"):
            continue
        missing = [0, 0]
        for axis, length in enumerate(lengths):
            stride = layer.stride[axis]
            lengths[axis] = -(-length // stride)
            reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
            missing[axis] = max((lengths[axis] - 1) * stride + reach - length, 0)
        rows, columns = missing
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        padding = nn.ZeroPad2d(sides) if any(missing) else nn.Identity()
        yield Exchanged(f"{address}.static_padding", padding)
