"""Weights that are in memory already: a mapping from names to tensors, or a model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.weights import nested
from surgery.weights.value import TensorInfo, Weights


def of_mapping(source: Mapping[Any, object], inside: str | None) -> Weights:
    """The weights of a state dict, or of a training checkpoint that was loaded already.

    Args:
        source: names and tensors, or entries that hold such. It is not changed.
        inside: which entry to take.

    Returns:
        The lazy value; it holds the tensors themselves and copies them when they are read.

    Raises:
        AmbiguousWeightsError: there are several state dicts in it, or none.

    Example:
        >>> import torch
        >>> of_mapping({"w": torch.ones(2)}, None).tensors["w"].shape
        (2,)
    """
    return _weights("dict", "dict", source, inside)


def of_model(model: nn.Module, inside: str | None) -> Weights:
    """The weights of a live model, under the names of its own ``state_dict``.

    Args:
        model: any module; a wrapper around the whole of it is passed through.
        inside: nothing to choose in a model: an error unless None.

    Returns:
        The lazy value; it holds the model's tensors and copies them when they are read.

    Raises:
        UnsupportedModelError: lazy, scripted or exported.
        AmbiguousWeightsError: the model holds no tensor, or ``inside`` was given.

    Example:
        >>> of_model(nn.Linear(2, 3), None).origin
        'model Linear'
    """
    inner = tree.unwrap(tree.check_model(model))
    # keep_vars keeps tied parameters one object, which meta tensors have no address to show.
    state = inner.state_dict(keep_vars=True)
    return _weights(f"model {type(inner).__name__}", "model", state, inside)


def _weights(origin: str, kind: str, source: Mapping[Any, object], inside: str | None) -> Weights:
    choice = nested.choose(source, torch.Tensor, inside, origin)
    return Weights(
        origin,
        kind,
        describe(choice.entries),
        choice.metadata,
        choice.path,
        choice.notes,
        Memory(choice.entries),
    )


def describe(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """The facts of tensors that are in memory, ties included.

    Example:
        >>> w = torch.ones(2, 2)
        >>> describe({"a": w, "b": w, "row": w[0]})["a"].aliases
        ('b',)
    """
    same: dict[Hashable, list[str]] = {}
    for name, tensor in tensors.items():
        same.setdefault(identity(tensor), []).append(name)
    return {
        name: TensorInfo(
            tuple(tensor.shape),
            tensor.dtype,
            tensor.numel() * tensor.element_size(),
            tuple(other for other in same[identity(tensor)] if other != name),
        )
        for name, tensor in tensors.items()
    }


def identity(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that are the same bytes read the same way."""
    plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.numel() > 0
    if not plain or type(tensor) not in (torch.Tensor, nn.Parameter):
        return id(tensor)
    # Two parts of one storage differ in their first address, a transposed one in its strides.
    where = tensor.data_ptr()
    return (where, tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())


@dataclass(frozen=True, eq=False)
class Memory:
    """Tensors in memory, copied when they are read."""

    tensors: Mapping[str, torch.Tensor]

    def read(self, name: str) -> torch.Tensor:
        """A private copy of one tensor."""
        return self.tensors[name].detach().clone()

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Private copies, one for each group of aliases."""
        copies: dict[Hashable, torch.Tensor] = {}
        for name, tensor in self.tensors.items():
            if name in names:
                key = identity(tensor)
                if key not in copies:
                    copies[key] = self.read(name)
                yield name, copies[key]
