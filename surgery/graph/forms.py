"""What one argument of a forward pass may look like, read off the layers that could take it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from surgery import tree

Fill: TypeAlias = Literal["float", "ids", "lengths", "ones", "false", "value", "list"]
Size: TypeAlias = "int | tuple[int, ...]"

BATCH = "batch"
IMAGE, FRAMES, VOLUME, MAP = "image", "frames", "volume", "map"
LENGTH, SIGNAL = "length", "signal"

# Most plausible first. An axis that is not here carries its own size: "width 63", "channels 3".
LADDERS: Mapping[str, tuple[int, ...]] = {
    # BatchNorm in train mode refuses a batch of one; some models refuse a batch of two.
    BATCH: (2, 1),
    IMAGE: (
        *(224, 32, 299, 28, 64, 128, 256, 384, 512, 96, 112, 448, 192, 160, 240, 260, 300, 320),
        *(380, 456, 480, 518, 528, 600, 640, 16, 8),
    ),
    FRAMES: (16, 8, 32, 4, 64),
    VOLUME: (64, 32, 96, 128, 16),
    MAP: (1, 4, 7, 8, 16, 32),
    LENGTH: (16, 32, 8, 64, 128, 4, 256, 512, 2, 1),
    SIGNAL: (16000, 1024, 128, 4096, 256, 512, 64, 32, 48000, 44100, 22050, 8000, 3000, 16),
}
_SIZE_NAMES: Mapping[str, frozenset[str]] = {
    IMAGE: frozenset(
        (
            *("image_size", "img_size", "input_size", "image_resolution", "input_resolution"),
            *("resolution", "crop_size", "image_shape", "img_shape", "input_shape"),
        )
    ),
    LENGTH: frozenset(
        (
            *("max_length", "max_len", "max_seq_len", "seq_len", "seq_length", "sequence_length"),
            *("block_size", "context_length", "max_position_embeddings", "n_positions", "n_ctx"),
            *("window_size", "lookback"),
        )
    ),
}
_CONFIGURATIONS = ("config", "cfg", "hparams", "args", "default_cfg", "pretrained_cfg")


class _Empty(dict[str, Any]):
    """A dict without entries that can be part of a frozen value."""

    __hash__ = object.__hash__  # type: ignore[assignment]


EMPTY = _Empty()


@dataclass(frozen=True, slots=True)
class Form:
    """One form an argument may have.

    Attributes:
        shape: for each axis its size, or the name of an axis whose size is still free.
        fill: ``float`` (no values: a meta tensor), ``ids`` (counting up, below ``limit``),
            ``lengths`` (the size of the sequence axis), ``ones``, ``false``, ``value`` (no
            tensor but ``value`` itself), ``list`` (a list of ``items``).
        dtype: of a float or complex tensor.
        limit: ids are below it.
        value: what is passed as it is.
        items: the forms in the list.
    """

    shape: tuple[int | str, ...] = ()
    fill: Fill = "float"
    dtype: torch.dtype = torch.float32
    limit: int = 0
    value: Any = None
    items: tuple[Form, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The free axes, each once, in order; those of a list's items included."""
        own = [axis for axis in self.shape if isinstance(axis, str)]
        own += [axis for item in self.items for axis in item.axes]
        own += [LENGTH] if self.fill == "lengths" else []
        return tuple(dict.fromkeys(own))

    def build(self, sizes: Mapping[str, Size], limit: int | None = None) -> Any:
        """The argument, with these sizes for the free axes and ids below ``limit``."""
        if self.fill == "list":
            return [item.build(sizes, limit) for item in self.items]
        if self.fill == "value":
            return self.value
        shape = self._shape(sizes)
        # Tensors made in inference mode could not be used outside of it.
        with torch.inference_mode(False):
            if self.fill == "float":
                return torch.empty(shape, dtype=self.dtype, device="meta")
            if self.fill == "lengths":
                return torch.full(shape, _single(sizes[LENGTH]), dtype=torch.long, device="cpu")
            if self.fill == "ones":
                return torch.ones(shape, dtype=torch.long, device="cpu")
            if self.fill == "false":
                return torch.zeros(shape, dtype=torch.bool, device="cpu")
            along = self.shape.index(LENGTH) if LENGTH in self.shape else len(shape) - 1
            counted = torch.arange(shape[along], dtype=torch.long, device="cpu")
            counted %= self.limit if limit is None else min(self.limit, limit)
            spread = [1] * len(shape)
            spread[along] = shape[along]
            return counted.reshape(spread).expand(shape).contiguous()

    def _shape(self, sizes: Mapping[str, Size]) -> list[int]:
        shape: list[int] = []
        met: dict[str, int] = {}
        for axis in self.shape:
            if isinstance(axis, int):
                shape.append(axis)
                continue
            size = sizes[axis]
            if isinstance(size, tuple):  # height and width apart
                size, met[axis] = size[met.get(axis, 0) % len(size)], met.get(axis, 0) + 1
            shape.append(size)
        return shape


def _single(size: Size) -> int:
    return size if isinstance(size, int) else size[0]


def ladder(axis: str, hints: Mapping[str, Sequence[Size]]) -> tuple[Size, ...]:
    """The sizes to try for an axis, most plausible first."""
    name, _, own = axis.partition(" ")
    if name == "channels":
        sizes: tuple[Size, ...] = (int(own), 3, 1)
    elif name == "width":
        sizes = (int(own), max(1, int(own) // 2), 3, 2, 1)
    elif axis == LENGTH:
        longest = min((hint for hint in hints.get(axis, ()) if isinstance(hint, int)), default=512)
        short = tuple(size for size in LADDERS[axis] if size <= longest)
        sizes = (*short, *hints.get(axis, ()))
    else:
        sizes = (*hints.get(axis, ()), *LADDERS[axis])
    return tuple(dict.fromkeys(sizes))


def size_hints(model: nn.Module) -> dict[str, tuple[Size, ...]]:
    """Sizes that a model states about itself, by axis: ``image_size``, ``config.max_length``."""
    found: dict[str, list[Size]] = {axis: [] for axis in _SIZE_NAMES}
    for _, module in tree.walk(model):
        _collect(vars(module), found)
        for name in _CONFIGURATIONS:
            _collect_configuration(module.__dict__.get(name), found, depth=2)
    return {axis: tuple(dict.fromkeys(sizes)) for axis, sizes in found.items()}


def module_keys(model: nn.Module) -> tuple[str, ...]:
    """The keys of every ``nn.ModuleDict``, which a forward may be asked to choose from."""
    return tuple(
        dict.fromkeys(
            key
            for _, module in tree.walk(model)
            if isinstance(module, nn.ModuleDict)
            for key in module
        )
    )


def _collect(values: Mapping[Any, Any], found: dict[str, list[Size]]) -> None:
    for axis, names in _SIZE_NAMES.items():
        for name in names.intersection(values):
            size = _as_size(values[name])
            if size is not None:
                found[axis].append(size)


def _collect_configuration(value: Any, found: dict[str, list[Size]], depth: int) -> None:
    inside = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if not isinstance(inside, dict) or depth == 0:
        return
    _collect(inside, found)
    for name, nested in inside.items():
        if isinstance(name, str) and name.endswith(_CONFIGURATIONS):
            _collect_configuration(nested, found, depth - 1)


def _as_size(value: Any) -> Size | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20:
        return value
    if isinstance(value, (tuple, list)) and len(value) in (2, 3):
        plain = all(isinstance(item, int) and 0 < item < 1 << 16 for item in value)
        last = tuple(value[-2:])  # (channels, height, width)
        if plain:
            return last if last[0] != last[1] else int(last[0])
    return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A layer that could take an argument of the model, and the forms it would take."""

    address: str
    forms: tuple[Form, ...]


def entries(model: nn.Module) -> tuple[Entry, ...]:
    """The layers that could come first, in order of registration; bare parameters last."""
    typed: list[Entry] = []
    bare: list[Entry] = []
    for address, module in tree.walk(model):
        if any(_inside(address, entry.address) for entry in reversed(typed)):
            continue
        forms = forms_of(module)
        if forms:
            typed.append(Entry(address, tuple(dict.fromkeys(forms))))
        elif module._parameters:
            own = tuple(dict.fromkeys(_of_parameters(module)))
            if own:
                bare.append(Entry(address, own))
    return (*typed, *bare)


def _inside(address: str, outer: str) -> bool:
    return not outer or address == outer or address.startswith(outer + ".")


def forms_of(module: nn.Module) -> tuple[Form, ...]:
    """The forms that a single layer takes, or nothing where its class says nothing about it."""
    dtype = _dtype(module)
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
        return _of_norm(module, dtype)
    if isinstance(module, nn.MultiheadAttention):
        widths = dict.fromkeys((module.embed_dim, module.kdim, module.vdim))
        return tuple(
            form for width in widths for form in _sequences(width, module.batch_first, dtype)
        )
    if isinstance(module, nn.Transformer):
        return tuple(_sequences(module.d_model, module.batch_first, dtype))
    if isinstance(module, nn.Bilinear):
        widths = dict.fromkeys((module.in1_features, module.in2_features))
        return tuple(Form((BATCH, f"width {width}"), dtype=dtype) for width in widths)
    return _of_attributes(module, dtype)


def _of_attributes(module: nn.Module, dtype: torch.dtype) -> tuple[Form, ...]:
    # By attribute and not by class: quantised and third-party layers keep torch's names.
    stated = vars(module)
    known = type(module).__module__.startswith("torch.")
    if not known and any(child._parameters for child in module.children()):
        return ()
    kernel, channels = stated.get("kernel_size"), stated.get("in_channels")
    if isinstance(channels, int) and isinstance(kernel, tuple):
        transposed = bool(stated.get("transposed"))
        return tuple(_of_convolution(channels, len(kernel), transposed, dtype))
    rows = stated.get("num_embeddings")
    if isinstance(rows, int):
        shapes: tuple[tuple[str, ...], ...]
        shapes = ((BATCH, LENGTH), (LENGTH, BATCH), (BATCH,), (LENGTH,))
        return tuple(Form(shape, "ids", limit=max(1, rows)) for shape in shapes)
    width, hidden = stated.get("input_size"), stated.get("hidden_size")
    if isinstance(width, int) and isinstance(hidden, int):
        if isinstance(module, nn.RNNCellBase):
            return tuple(Form((BATCH, f"width {size}"), dtype=dtype) for size in (width, hidden))
        forms = _sequences(width, bool(stated.get("batch_first")), dtype)
        return (*forms, Form((BATCH, LENGTH), dtype=dtype)) if width == 1 else tuple(forms)
    width = stated.get("in_features")
    return tuple(_of_linear(width, dtype)) if isinstance(width, int) and width > 0 else ()


def _of_convolution(
    channels: int, rank: int, transposed: bool, dtype: torch.dtype
) -> Iterator[Form]:
    own = f"channels {channels}"
    shapes: list[tuple[int | str, ...]]
    if rank == 1:
        shapes = [(BATCH, own, SIGNAL), (BATCH, LENGTH, own)]
        shapes += [(BATCH, SIGNAL)] if channels == 1 else []
    elif rank == 2:
        side = MAP if transposed else IMAGE
        shapes = [(BATCH, own, side, side)]
        shapes += [(BATCH, side, side)] if channels == 1 else []
        shapes += [(BATCH, 8, own, side, side), (BATCH, side, side, own)]
        shapes += [(BATCH, SIGNAL)] if channels == 1 else []
    else:
        shapes = [(BATCH, own, FRAMES, IMAGE, IMAGE), (BATCH, FRAMES, own, IMAGE, IMAGE)]
        shapes += [(BATCH, own, VOLUME, VOLUME, VOLUME)]
    yield from (Form(shape, dtype=dtype) for shape in shapes)


def _of_linear(width: int, dtype: torch.dtype) -> Iterator[Form]:
    own = f"width {width}"
    shapes: list[tuple[int | str, ...]] = [(BATCH, own), (BATCH, LENGTH, own)]
    for channels in (1, 3):  # a picture that the model flattens itself
        side = math.isqrt(width // channels)
        if side > 1 and channels * side * side == width:
            shapes.append((BATCH, channels, side, side))
    shapes += [(BATCH, 1, own), (BATCH, IMAGE, IMAGE, own), (BATCH, 3, IMAGE, IMAGE)]
    shapes += [(BATCH, 1, IMAGE, IMAGE), (BATCH, SIGNAL)]
    yield from (Form(shape, dtype=dtype) for shape in shapes)


def _sequences(width: int, batch_first: bool, dtype: torch.dtype) -> list[Form]:
    own = f"width {width}"
    shapes = [(BATCH, LENGTH, own), (LENGTH, BATCH, own)]
    ordered = shapes if batch_first else shapes[::-1]
    return [Form(shape, dtype=dtype) for shape in ordered]


def _of_norm(
    module: nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm, dtype: torch.dtype
) -> tuple[Form, ...]:
    shapes: list[tuple[int | str, ...]]
    if isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape
        own = f"width {shape[-1]}"
        shapes = [(BATCH, LENGTH, own), (BATCH, own)] if len(shape) == 1 else [(BATCH, *shape)]
    elif isinstance(module, nn.GroupNorm):
        own = f"channels {module.num_channels}"
        shapes = [(BATCH, own, IMAGE, IMAGE), (BATCH, own, SIGNAL), (BATCH, own)]
    else:
        own = f"channels {module.num_features}"
        shapes = [(BATCH, own, IMAGE, IMAGE), (BATCH, own, FRAMES, IMAGE, IMAGE)]
        if isinstance(module, (nn.BatchNorm1d, nn.InstanceNorm1d)):
            shapes = [(BATCH, f"width {module.num_features}"), (BATCH, own, SIGNAL)]
        elif isinstance(module, (nn.BatchNorm3d, nn.InstanceNorm3d)):
            shapes.reverse()
    return tuple(Form(shape, dtype=dtype) for shape in shapes)


def _of_parameters(module: nn.Module) -> Iterator[Form]:
    """What a module with parameters of its own could take, by their shapes."""
    for parameter in module._parameters.values():
        if parameter is None or parameter.dim() == 0 or parameter.dim() > 5:
            continue
        dtype = parameter.dtype if _computes(parameter) else torch.float32
        if parameter.dim() > 2:
            yield from _of_convolution(parameter.shape[1], parameter.dim() - 2, False, dtype)
        for width in dict.fromkeys((parameter.shape[0], parameter.shape[-1])):
            yield from (
                Form(shape, dtype=dtype)
                for shape in ((BATCH, f"width {width}"), (BATCH, LENGTH, f"width {width}"))
            )
        if parameter.dim() == 2:  # a table that is indexed
            yield Form((BATCH, LENGTH), "ids", limit=max(1, parameter.shape[0]))


def _dtype(module: nn.Module) -> torch.dtype:
    """The dtype a layer computes in: that of its first floating or complex parameter."""
    for parameter in module.parameters():
        if _computes(parameter):
            return parameter.dtype
    return torch.get_default_dtype()


def _computes(tensor: torch.Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.element_size() > 1
