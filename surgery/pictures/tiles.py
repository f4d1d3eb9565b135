"""Tensors as tiles of one image: scaled to what can be shown, enlarged, labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torchvision.utils import make_grid

Normalise: TypeAlias = Literal["whole", "each"]

# The side of a tile, in pixels, where it is enlarged; a tile is never made smaller.
_SIDE = 48
_PADDING = 2
_BACKGROUND = 1.0
_STRIP = 22


def scaled(tiles: torch.Tensor, normalise: Normalise) -> torch.Tensor:
    """Values from 0 to 1: the smallest black, the largest white.

    Args:
        tiles: of shape (tiles, channels, height, width), any values.
        normalise: ``whole`` for one scale, so that tiles compare; ``each`` for one a tile, so
            that faint ones show. What does not vary is grey.

    Returns:
        The same shape, in float32. What is no number, or infinite, counts as the nearest end.

    Example:
        >>> tiles = torch.tensor([0.0, 2.0, 4.0, 3.0]).view(2, 1, 1, 2)
        >>> scaled(tiles, "whole").flatten().tolist(), scaled(tiles, "each").flatten().tolist()
        ([0.0, 0.5, 1.0, 0.75], [0.0, 1.0, 1.0, 0.0])
    """
    values = tiles.detach().to("cpu", torch.float64)
    finite = values[values.isfinite()]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    values = values.nan_to_num(nan=float(low), posinf=float(high), neginf=float(low))
    if normalise == "each":
        least = values.amin((1, 2, 3), keepdim=True)
        span = values.amax((1, 2, 3), keepdim=True) - least
    else:
        least, span = values.min(), values.max() - values.min()
    return torch.where(span > 0, (values - least) / span.clamp_min(1e-300), 0.5).float()


def grid(tiles: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Tiles side by side, each enlarged by a whole number, two pixels apart.

    Args:
        tiles: of shape (tiles, 1 or 3, height, width), from 0 to 1.
        columns: how many stand in a row; about as many as rows, if left out.

    Returns:
        An image of shape (3, height, width).

    Example:
        >>> grid(torch.zeros(5, 3, 7, 7)).shape
        torch.Size([3, 90, 134])
    """
    factor = max(1, _SIDE // max(tiles.shape[2:]))
    large = tiles.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    # One tile alone would come back without the padding around it.
    if len(tiles) == 1:
        large = torch.nn.functional.pad(large, [_PADDING] * 4, value=_BACKGROUND)
    made: torch.Tensor = make_grid(large, nrow=columns, padding=_PADDING, pad_value=_BACKGROUND)
    return made


def labelled(image: torch.Tensor, text: str) -> torch.Tensor:
    """An image with a line of text above it; wide enough for it.

    Args:
        image: of shape (3, height, width).
        text: one line.
    """
    from PIL import Image, ImageDraw, ImageFont

    # The default font has no more letters than these.
    plain = text.encode("ascii", "backslashreplace").decode()
    font = ImageFont.load_default(13)
    width = max(image.shape[2], math.ceil(font.getlength(plain)) + 8)
    strip = Image.new("RGB", (width, _STRIP), "white")
    ImageDraw.Draw(strip).text((4, 3), plain, fill="black", font=font)
    values = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8)
    above = values.view(_STRIP, width, 3).permute(2, 0, 1).float() / 255
    return torch.cat([above, _widened(image, width)], 1)


def beside(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images next to each other, their upper sides in one line."""
    height = max(image.shape[1] for image in images)
    padded = [
        torch.nn.functional.pad(image, [0, _PADDING * 4, 0, height - image.shape[1]], value=1.0)
        for image in images
    ]
    return torch.cat(padded, 2)


def below(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images below each other, their left sides in one line."""
    width = max(image.shape[2] for image in images)
    return torch.cat([_widened(image, width) for image in images], 1)


def _widened(image: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(image, [0, width - image.shape[2]], value=_BACKGROUND)
