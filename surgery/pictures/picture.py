"""Kernels and feature maps of a layer as one image."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.utils import save_image

from surgery import tree
from surgery.errors import ArgumentError
from surgery.families.registry import Registry, check_registry
from surgery.operations.plan import Outcome
from surgery.pictures.file import check, placed
from surgery.pictures.filters import chosen, filters
from surgery.pictures.maps import feature_maps
from surgery.pictures.photograph import with_image
from surgery.pictures.tiles import Normalise, below, beside, grid, labelled, scaled
from surgery.recording import resolve_example

_EXAMPLE = "picture.save('filters.png')"


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """An image made of tiles. Notebooks show it.

    Attributes:
        title: what is shown.
        image: of shape (3, height, width), values from 0 to 1.
        notes: what was left out or chosen, in sentences.
        maps: for feature maps: all of them, of shape (channels, height, width), before scaling.
        difference: for two models: the largest difference between their maps, or None where
            these have other shapes.
    """

    title: str
    image: torch.Tensor
    notes: tuple[str, ...] = ()
    maps: torch.Tensor | None = field(default=None)
    difference: float | None = None

    def __repr__(self) -> str:
        height, width = self.image.shape[1:]
        return f"<Picture: {self.title}, {width} x {height}>"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        save_image(self.image, file, format="png")
        return file.getvalue()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the image to a file, all of it or nothing.

        Args:
            path: the destination; its suffix says which format: PNG, JPEG, whatever PIL writes.
            overwrite: replace a file that is there.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: this is no path, or PIL writes no such format.
            WeightsError: there is a file already, no directory, no permission or no space.

        Example:
            >>> import tempfile, torch, surgery
            >>> picture = surgery.picture(torch.nn.Conv2d(3, 8, 5), "")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     picture.save(f"{folder}/filters.png").name
            'filters.png'
        """
        kind = _format(path)
        with placed(path, overwrite, _EXAMPLE) as file:
            save_image(self.image, file, format=kind)
        return Path(path).resolve()


def picture(
    target: nn.Module | Outcome,
    layer: str,
    path: str | os.PathLike[str] | None = None,
    *,
    image: Any = None,
    after: nn.Module | Outcome | None = None,
    output: str | None = None,
    channel: int | None = None,
    limit: int = 64,
    normalise: Normalise = "whole",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    example: Any = None,
    overwrite: bool = False,
    registry: Registry | None = None,
) -> Picture:
    """Draw the kernels of a layer, or, given an image, the feature maps it puts out.

    Kernels over three channels are drawn in colour, those over others as a row of tiles each, one
    for every input channel; the weight of a linear layer as one matrix. For maps a copy of the
    model runs in eval mode and without gradients: the model is not touched.

    Args:
        target: a model, or an outcome, whose model is meant.
        layer: the address of a layer; of kernels also a pattern with ``*``, for all convolutions
            that fit.
        path: where to save the picture, if anywhere.
        image: the path of an image, an image of PIL, or a tensor (channels, height, width) with
            values from 0 to 1. Files are resized and cut to the size the model takes.
        after: a second model, after an operation: the maps of both side by side on one scale, and
            how they differ. It has to be another object than the first.
        output: which tensor, where the layer puts out several: ``"output[0]"``.
        channel: of kernels, the one input channel to draw.
        limit: how many tiles at most; the notes say what was left out.
        normalise: ``"whole"`` for one scale, ``"each"`` for one a tile.
        mean: what is subtracted from each channel of the image.
        std: what each channel is divided by then.
        example: the arguments of one forward pass; left out, they are supplied or inferred.
        overwrite: replace a file that is there.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The picture, with its ``image`` as a tensor.

    Raises:
        AddressError: there is no such layer; the closest is named.
        ArgumentError: a wrong argument, a layer without kernel or that does not run, no image.
        ExampleError: the model takes no image, or no example could be inferred.
        RecordError: forward raised.
        WeightsError: the file cannot be written.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 7), nn.ReLU())
        >>> surgery.picture(net, "0").title
        '0: 8 kernels of 7 x 7 over 3 channels'
        >>> photo, example = torch.rand(3, 32, 32), torch.zeros(1, 3, 32, 32)
        >>> surgery.picture(net, "1", image=photo, example=example).title
        '1: 8 maps of 26 x 26'
    """
    _check(limit, normalise, image, after)
    check_registry(registry)
    if path is not None:
        _format(path)
        check(path, overwrite, _EXAMPLE)
    model = _model(target)
    if image is None:
        made = _kernels(model, layer, channel, limit, normalise)
    else:
        given = (image, mean, std, example, registry)
        made = _maps(model, layer, given, output, limit, normalise)
        if after is not None:
            other = _maps(_model(after, model), layer, given, output, limit, normalise)
            made = _compared(made, other, limit, normalise)
    if path is not None:
        made.save(path, overwrite=overwrite)
    return made


def _check(limit: object, normalise: object, image: object, after: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ArgumentError(
            "a limit is a number of tiles",
            where="limit",
            expected="an integer, 1 or more",
            found=repr(limit),
            fix="limit=64",
        )
    if normalise not in ("whole", "each"):
        raise ArgumentError(
            "tiles are scaled together or each by itself",
            where="normalise",
            expected="'whole' or 'each'",
            found=repr(normalise),
            fix="normalise='each'",
        )
    if after is not None and image is None:
        raise ArgumentError(
            "before and after are compared by their feature maps, which need an image",
            where="image",
            expected="an image",
            found="None",
            fix="surgery.picture(model, 'layer1', image='photo.jpg', after=other)",
        )


def _model(target: object, before: nn.Module | None = None) -> nn.Module:
    model = target.model if isinstance(target, Outcome) else target
    checked = tree.unwrap(tree.check_model(model))
    if checked is before:
        raise ArgumentError(
            "before and after are one model: an operation changes it in place",
            where="after",
            expected="another object than the first",
            found=tree.class_name(type(checked)),
            fix="before = copy.deepcopy(model), then operate, then "
            "surgery.picture(before, 'layer1', image=image, after=model)",
        )
    return checked


def _kernels(
    model: nn.Module, layer: str, channel: int | None, limit: int, normalise: Normalise
) -> Picture:
    weights, notes = chosen(model, layer)
    images = []
    for address, weight in weights.items():
        found = filters(address, weight, channel=channel, limit=limit)
        title = f"{address}: {found.said}" if address else found.said
        images.append(labelled(grid(scaled(found.tiles, normalise), found.columns), title))
        notes += tuple(f"{address}: {note}" if address else note for note in found.notes)
    name = title if len(images) == 1 else f"{len(images)} layers that fit {layer}"
    return Picture(name, below(images), notes)


def _maps(
    model: nn.Module,
    layer: str,
    given: tuple[Any, ...],
    output: str | None,
    limit: int,
    normalise: Normalise,
) -> Picture:
    image, mean, std, example, registry = given
    tree.get_module(model, layer)
    known = resolve_example(model, example, registry=registry).in_mode(False)
    filled, notes = with_image(known, image, mean=mean, std=std)
    maps, said = feature_maps(model, layer, filled, output)
    height, width = maps.shape[1:]
    title = f"{layer}: {len(maps)} maps of {height} x {width}".removeprefix(": ")
    if len(maps) > limit:
        said += (f"{limit} of {len(maps)} maps are drawn",)
    shown = scaled(maps[:limit, None], normalise)
    return Picture(title, labelled(grid(shown), title), notes + said, maps)


def _compared(before: Picture, after: Picture, limit: int, normalise: Normalise) -> Picture:
    """Both on one scale, and where they differ."""
    notes = tuple(dict.fromkeys((*before.notes, *after.notes)))
    first, second = before.maps, after.maps
    if first is None or second is None or first.shape != second.shape:
        sides = [
            labelled(side.image, name) for side, name in ((before, "before"), (after, "after"))
        ]
        notes += ("the shapes differ, so that the maps cannot be compared",)
        return Picture(f"{before.title}, then {after.title}", beside(sides), notes, second)
    apart = (first.double() - second.double()).abs()
    largest = float(apart.max()) if apart.numel() else 0.0
    count = min(len(first), limit)
    both = scaled(torch.cat([first[:count], second[:count]])[:, None], normalise)
    faint = apart[:count, None]
    panels = {
        "before": both[:count],
        "after": both[count:],
        # Nothing is black, whatever the scale.
        f"difference, at most {largest:.3g}": (faint / (faint.max() or 1.0)).float(),
    }
    sides = [labelled(grid(tiles), name) for name, tiles in panels.items()]
    image = labelled(beside(sides), before.title)
    return Picture(f"{before.title}, before and after", image, notes, second, largest)


def _format(path: object) -> str:
    """The format that the name of a file asks for.

    Raises:
        ArgumentError: PIL writes no such format.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower() if isinstance(path, str | os.PathLike) else ""
    known = Image.registered_extensions()
    kind = known.get(suffix, "")
    if kind not in Image.SAVE:
        raise ArgumentError(
            "an image of kernels or maps cannot be written in this format",
            where="path",
            expected="a name that ends in .png, .jpg or another format that PIL writes",
            found=repr(path),
            fix=_EXAMPLE,
        )
    return kind.lower()
