"""The kernels of convolutions, and other weights, as tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError
from surgery.patterns import fitting

# Tiles of one layer, input channels in a row of them, and the sides of a matrix.
_CHANNELS = 16
_LAYERS = 16
_MATRIX = 1024
_SHOWN = 6


@dataclass(frozen=True)
class Filters:
    """The weights of one layer, ready to be drawn.

    Attributes:
        address: of the layer.
        tiles: of shape (tiles, 1 or 3, height, width).
        columns: how many stand in a row, where that says something.
        said: what they are, in words.
        notes: what was left out.
    """

    address: str
    tiles: torch.Tensor
    columns: int | None
    said: str
    notes: tuple[str, ...]


def chosen(model: nn.Module, layer: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights that an address or a pattern names.

    Args:
        model: any module.
        layer: the address of a layer with a weight, or a pattern with ``*``, which means the
            convolutions that fit.

    Returns:
        Weights by address of the layer, and what was left out.

    Raises:
        AddressError: there is no such module.
        ArgumentError: it has no kernel, or the pattern fits no convolution.
    """
    with_kernels = {
        address: weight
        for _, (module, addresses) in tree.index(model).modules.items()
        for address in addresses[:1]
        if (weight := _weight(module)) is not None and weight.ndim > 2
    }
    if any(character in layer for character in "*?["):
        fits = fitting(layer, "layer")
        found = {address: weight for address, weight in with_kernels.items() if fits(address)}
        if not found:
            raise _no_kernel(layer, "the pattern fits no convolution", with_kernels)
        more = len(found) - _LAYERS
        left = (f"{_LAYERS} of {len(found)} layers are drawn",) if more > 0 else ()
        return dict(list(found.items())[:_LAYERS]), left
    weight = _weight(tree.get_module(model, layer))
    if weight is None:
        inside = {a: w for a, w in with_kernels.items() if a.startswith(f"{layer}.") or not layer}
        raise _no_kernel(layer, "this layer has no kernel of its own", inside or with_kernels)
    if weight.is_meta:
        raise ArgumentError(
            "the layer has no values to draw",
            where=layer or "(the model itself)",
            expected="weights on a real device",
            found="meta",
            fix="surgery.load_weights(model, 'model.safetensors')",
        )
    return {layer: weight}, ()


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    if callable(weight):  # a quantised layer unpacks its weight when it is asked
        weight = weight()
    if not isinstance(weight, torch.Tensor) or weight.ndim < 2 or not weight.numel():
        return None
    plain = weight.dequantize() if weight.is_quantized else weight.detach()
    transposed = getattr(module, "transposed", False) and getattr(module, "groups", 1) == 1
    return plain.transpose(0, 1) if transposed else plain


def _no_kernel(layer: str, what: str, others: dict[str, torch.Tensor]) -> ArgumentError:
    names = list(others)
    more = ", ..." if len(names) > _SHOWN else ""
    return ArgumentError(
        what,
        where=layer or "(the model itself)",
        expected=f"one of {', '.join(names[:_SHOWN])}{more}" if names else "a convolution",
        found=layer,
        fix=f"surgery.picture(model, {names[0]!r})" if names else "surgery.audit(model)",
    )


def filters(address: str, weight: torch.Tensor, *, channel: int | None, limit: int) -> Filters:
    """Cut a weight into tiles.

    Kernels over three channels become coloured tiles; those over others a row of grey ones, one
    for each channel; a matrix becomes one tile.

    Args:
        address: of the layer.
        weight: of shape (out, in, ...).
        channel: the one input channel to draw, or None for all.
        limit: how many tiles at most.

    Raises:
        ArgumentError: there is no such channel.
    """
    out, inner = weight.shape[:2]
    if weight.ndim == 2:
        return _matrix(address, weight)
    # A kernel over a line is one pixel high; one over a volume is cut into its planes.
    planes = weight.unsqueeze(2) if weight.ndim == 3 else weight
    depth = planes.shape[2] if planes.ndim == 5 else 1
    planes = planes.transpose(1, 2).flatten(0, 1) if planes.ndim == 5 else planes
    form = " x ".join(map(str, weight.shape[2:]))
    said = f"{out} kernels of {form} over {inner} channels"
    if channel is not None:
        if not 0 <= channel < inner:
            raise ArgumentError(
                "the kernels have no such input channel",
                where=f"{address}, channel={channel}",
                expected=f"0 to {inner - 1}",
                found=str(channel),
                fix="channel=0",
            )
        planes, said = planes[:, channel : channel + 1], f"{said}, channel {channel}"
    if planes.shape[1] in (1, 3):
        notes = _left(len(planes), limit, "kernels" if depth == 1 else "planes of kernels")
        return Filters(address, planes[:limit], None, said, notes)
    wide = min(planes.shape[1], _CHANNELS, limit)
    high = max(1, limit // wide)
    notes = _left(len(planes), high, "kernels") + _left(planes.shape[1], wide, "input channels")
    tiles = planes[:high, :wide].flatten(0, 1).unsqueeze(1)
    return Filters(address, tiles, wide, said, notes)


def _matrix(address: str, weight: torch.Tensor) -> Filters:
    out, inner = weight.shape
    notes = _left(out, _MATRIX, "rows") + _left(inner, _MATRIX, "columns")
    tile = weight[:_MATRIX, :_MATRIX][None, None]
    return Filters(address, tile, 1, f"a matrix of {out} x {inner}", notes)


def _left(there: int, drawn: int, what: str) -> tuple[str, ...]:
    return (f"{drawn} of {there} {what} are drawn",) if there > drawn else ()
