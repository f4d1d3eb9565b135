"""An image as the input of a model: of the size it takes, in its channels, on its scale."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from surgery.errors import ArgumentError, ExampleError
from surgery.graph.example import Example
from surgery.graph.skeleton import is_floating
from surgery.graph.structure import replace_tensors, tensors

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def with_image(
    example: Example,
    image: Any,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Example, tuple[str, ...]]:
    """An example with an image in the place of its images.

    The image is resized so that it covers what the model takes, and its middle is cut out.

    Args:
        example: what the model runs on; its first tensor of four axes, or of three in a list,
            says which size and how many channels.
        image: the path of a file that PIL reads, an image of PIL, or a tensor (channels, height,
            width) with values from 0 to 1, which is taken as it is.
        mean: what is subtracted from each channel.
        std: what each channel is divided by then.

    Returns:
        The example with real tensors, and what should be known of it.

    Raises:
        ArgumentError: this is no image, or mean and std do not fit its channels.
        ExampleError: the model takes no image.
    """
    spec = _wanted(example)
    channels, height, width = spec.shape[-3:]
    made = image.detach().cpu().float() if isinstance(image, torch.Tensor) else None
    if made is None:
        made = _pixels(image, channels, height, width)
    elif made.ndim != 3 or made.shape[0] != channels:
        raise ArgumentError(
            "the tensor is no image that this model takes",
            where="image",
            expected=f"({channels}, height, width), from 0 to 1",
            found=str(tuple(made.shape)),
            fix="image=image[0], or the path of a file",
        )
    made = _on_scale(made, mean, std).to(spec.dtype)
    alone = sum(1 for _ in tensors((example.args, dict(example.kwargs)))) == 1

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == spec.ndim and tensor.shape == spec.shape:
            return made.expand(1 if alone else len(tensor), *made.shape) if spec.ndim == 4 else made
        if is_floating(tensor.dtype) and tensor.ndim == 3 and spec.ndim == 3:
            return made
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.cpu()

    notes = () if mean or std else ("the image was not normalised: values from 0 to 1",)
    kwargs = {name: replace_tensors(value, twin) for name, value in example.kwargs.items()}
    args = tuple(replace_tensors(value, twin) for value in example.args)
    return Example(args, kwargs, forward=example.forward), notes


def _wanted(example: Example) -> torch.Tensor:
    every = [tensor for _, tensor in tensors((example.args, dict(example.kwargs)))]
    images = [tensor for tensor in every if is_floating(tensor.dtype) and tensor.ndim in (3, 4)]
    for tensor in sorted(images, key=lambda found: -found.ndim):
        if tensor.shape[-3] in _MODES:
            return tensor
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in every)
    raise ExampleError(
        "the model takes no image",
        where="example",
        expected="a tensor (batch, 1 or 3 channels, height, width)",
        found=shapes or "no tensors",
        fix="example=torch.zeros(1, 3, 224, 224)",
    )


def _pixels(image: Any, channels: int, height: int, width: int) -> torch.Tensor:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            with Image.open(path) as opened:
                # A photograph may say which side is up, and PIL alone does not follow it.
                image = ImageOps.exif_transpose(opened).convert(_MODES[channels])
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ArgumentError(
                "this is no image that can be read",
                where=str(path),
                expected="a PNG, a JPEG or another format that PIL reads",
                found=getattr(error, "strerror", None) or type(error).__name__,
                fix="pass the path of an image",
            ) from error
    if not isinstance(image, Image.Image):
        raise ArgumentError(
            "this is no image",
            where="image",
            expected="a path, an image of PIL, or a tensor (channels, height, width)",
            found=type(image).__name__,
            fix="image='photo.jpg'",
        )
    fitted = ImageOps.fit(
        image.convert(_MODES[channels]), (width, height), Image.Resampling.BILINEAR
    )
    values = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return values.view(height, width, channels).permute(2, 0, 1).float() / 255


def _on_scale(
    image: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> torch.Tensor:
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and (
            len(given) not in (1, len(image)) or (name == "std" and 0 in given)
        ):
            raise ArgumentError(
                f"{name} does not fit the channels of the image",
                where=f"{name}={tuple(given)}",
                expected=f"{len(image)} numbers, one a channel" + ", none 0" * (name == "std"),
                found=f"{len(given)}",
                fix="mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)",
            )
    if mean is not None:
        image = image - torch.tensor(tuple(mean)).view(-1, 1, 1)
    if std is not None:
        image = image / torch.tensor(tuple(std)).view(-1, 1, 1)
    return image
