"""What a file may fill in a model: the tensors behind the keys of its state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError, PlanError
from surgery.weights.memory import describe
from surgery.weights.value import TensorInfo

_EXTRA = "_extra_state"


@dataclass(frozen=True, eq=False)
class Places:
    """The tensors of a model by key of its state dict.

    Attributes:
        index: everything that the model holds.
        infos: shape, dtype and ties by key.
        entries: the tensor and its addresses by key; a key whose tensor is computed when the
            state dict is made has none.
        extra: keys of what modules keep besides tensors (``get_extra_state``).
    """

    index: tree.Index
    infos: Mapping[str, TensorInfo]
    entries: Mapping[str, tree.Entry]
    extra: tuple[str, ...]

    def entry(self, key: str) -> tree.Entry:
        """The tensor behind a key.

        Raises:
            PlanError: there is none.
        """
        if key in self.entries:
            return self.entries[key]
        raise PlanError(
            "the model computes this tensor when its state dict is made",
            where=key,
            expected="a parameter or buffer",
            found="a tensor that is not part of the model",
            fix=f"drop={key!r}, and model.load_state_dict(...) for what is loaded by its own code",
        )


def places_of(model: nn.Module) -> Places:
    """Look at what the state dict of a model holds. Nothing is copied.

    Args:
        model: the model, out of its wrappers.

    Raises:
        PlanError: the model is quantised.

    Example:
        >>> list(places_of(nn.Linear(2, 3)).infos)
        ['weight', 'bias']
    """
    index = tree.index(model)
    _check_unpacked(index)
    state = model.state_dict(keep_vars=True)
    tensors = {
        key: value
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and not _is_extra(key)
    }
    entries = {}
    for key, tensor in tensors.items():
        entry = index.tensors.get(id(tensor)) or _at(model, index, key)
        if entry is not None:
            entries[key] = entry
    extra = tuple(key for key in state if _is_extra(key))
    return Places(index, describe(tensors), entries, extra)


def _is_extra(key: str) -> bool:
    return key.rpartition(".")[2] == _EXTRA


def _at(model: nn.Module, index: tree.Index, key: str) -> tree.Entry | None:
    """The tensor at the address that a key spells: a hook may put copies into a state dict."""
    try:
        found = tree.get(model, key)
    except AddressError:
        return None
    return index.tensors.get(id(found))


def _check_unpacked(index: tree.Index) -> None:
    packed = [
        addresses[0]
        for module, addresses in index.modules.values()
        if any(isinstance(value, torch.ScriptObject) for value in vars(module).values())
    ]
    quantised = [e.address for e in index.tensors.values() if e.tensor.is_quantized]
    if packed or quantised:
        raise PlanError(
            "the model is quantised: its weights are packed with their scales, and a tensor "
            "alone does not replace them",
            where=(packed or quantised)[0] or "(the model itself)",
            expected="a model of floating-point numbers",
            found=f"{len(packed) or len(quantised)} quantised layers",
            fix="load into the model before it is quantised, or model.load_state_dict(...)",
        )
