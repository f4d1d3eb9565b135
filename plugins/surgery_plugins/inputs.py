"""Example inputs for models whose input layer has no address that all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def samples(part: nn.Module, *sizes: int) -> Tensor:
    """Two samples of zeros, for the convolution that comes first in a part of a model.

    Args:
        part: the input layer, or a block that begins with it.
        sizes: height and width; for videos, the frames before them.

    Returns:
        A tensor of shape (2, channels, *sizes), like the weight in dtype and device.

    Example:
        >>> from torch import nn
        >>> from surgery_plugins.inputs import samples
        >>> samples(nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU()), 64, 64).shape
        torch.Size([2, 3, 64, 64])
    """
    weight = next(parameter for parameter in part.parameters() if parameter.dim() > 1)
    return weight.new_zeros(2, weight.shape[1], *sizes)
