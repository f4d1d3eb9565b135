"""What layers are taken from: a live model or a checkpoint, as tensors by address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry, check_registry
from surgery.operations.content import PLAIN, Content
from surgery.weights import Weights, read


@dataclass(frozen=True, eq=False)
class Gift:
    """One tensor that a donor has.

    Attributes:
        address: the donor's name for it.
        shape: its sizes.
        dtype: of its elements.
        content: its values.
        tensor: the tensor itself, where the donor is a live model.
        addresses: all of the donor's names for it.
    """

    address: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    content: Content
    tensor: torch.Tensor | None
    addresses: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Donor:
    """What layers are taken from.

    Attributes:
        title: what to call it: a class or a file.
        tensors: parameters and buffers by every address.
        modules: the module at every address; None for those of a checkpoint, which has no classes.
        model: the live model, out of its wrappers.
    """

    title: str
    tensors: Mapping[str, Gift]
    modules: Mapping[str, nn.Module | None]
    model: nn.Module | None


def donor_of(source: object, registry: Registry | None = None) -> Donor:
    """Look at a donor; no values are read.

    Args:
        source: a model, a path, a mapping from names to tensors, or ``Weights``.
        registry: plugins whose readers know further formats of files.

    Raises:
        ArgumentError: no registry.
        UnsupportedModelError: lazy, scripted or exported.
        WeightsError: the checkpoint cannot be read.

    Example:
        >>> sorted(donor_of({"fc.bias": torch.ones(2)}).modules)
        ['', 'fc']
    """
    check_registry(registry)
    if isinstance(source, nn.Module):
        return _of_model(tree.check_model(source))
    fresh = not isinstance(source, Weights)
    weights = source if isinstance(source, Weights) else read(source, registry=registry)
    return _of_weights(weights, fresh)


def _of_model(model: nn.Module) -> Donor:
    index = tree.index(model)
    tensors = {}
    for entry in index.of_kind("parameter", "buffer"):
        tensor = entry.tensor
        for address in entry.addresses:
            content = Content(tensor.detach)
            shape = tuple(tensor.shape)
            tensors[address] = Gift(address, shape, tensor.dtype, content, tensor, entry.addresses)
    modules = {a: module for module, addresses in index.modules.values() for a in addresses}
    return Donor(type(index.root).__name__, tensors, modules, index.root)


def _of_weights(weights: Weights, fresh: bool) -> Donor:
    tensors = {}
    modules: dict[str, nn.Module | None] = {"": None}
    for name, info in weights.tensors.items():
        # What others opened may be mapped, and a map is no memory of a model's own.
        content = Content(lambda name=name: weights.read(name), fresh)  # type: ignore[misc]
        addresses = (name, *info.aliases)
        tensors[name] = Gift(name, info.shape, info.dtype, content, None, addresses)
        parts = name.split(".")[:-1]
        for length in range(1, len(parts) + 1):
            modules[".".join(parts[:length])] = None
    return Donor(weights.origin, tensors, modules, None)


def check_live(donor: Donor, how: str) -> nn.Module:
    """The donor as a model: only such a one has tensors to give away.

    Raises:
        ArgumentError: it is a checkpoint.
    """
    if donor.model is None:
        raise ArgumentError(
            f"a checkpoint has nothing to {how}: what is read from it is a copy",
            where=f"how={how!r}",
            expected="a live model as the donor",
            found=donor.title,
            fix="how='copy'",
        )
    return donor.model


def check_readable(gift: Gift, donor: Donor) -> None:
    """Refuse tensors whose values cannot be copied into others.

    Raises:
        PlanError: on meta, quantised, sparse, or of a class that keeps more than values.
    """
    tensor = gift.tensor
    if tensor is None:
        return
    what = unreadable(tensor)
    if what is not None:
        raise PlanError(
            f"the donor's tensor {what[0]}, and cannot be copied",
            where=f"{gift.address} of {donor.title}",
            expected="a plain tensor with values",
            found=what[1],
            fix=what[2],
        )


def unreadable(tensor: torch.Tensor) -> tuple[str, str, str] | None:
    """Why a tensor has no plain values: what, what it is, and what to do; None where it has."""
    if tensor.is_meta:
        fix = "surgery.load_weights(model, 'weights.safetensors') first"
        return "is on meta and has no values", "a tensor on meta", fix
    if tensor.is_quantized:
        return "is quantised", str(tensor.dtype), "tensor.dequantize(), or replace the module"
    if tensor.layout != torch.strided:
        return "is sparse", str(tensor.layout), "tensor.to_dense(), or replace the module"
    if type(tensor) not in PLAIN:
        name = tree.class_name(type(tensor))
        return "is of a class of its own", name, "surgery.replace(model, {address: module})"
    return None
