"""Everything a model is, bit for bit, as one value that can be compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from surgery import tree

_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


class Same:
    """An object, equal to itself only; holding on to it keeps its ``id`` from being reused."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} at {id(self.value):#x}>"


def content(tensor: torch.Tensor) -> object:
    """The bytes of a tensor; None on meta."""
    if tensor.is_meta:
        return None
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone().numpy().tobytes()


def _tensor(path: str, tensor: torch.Tensor) -> Iterator[tuple[str, object]]:
    yield f"{path}: version", None if tensor.is_inference() else tensor._version
    yield f"{path}: place", (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    yield f"{path}: pointer", None if tensor.is_meta else tensor.data_ptr()
    yield f"{path}: bytes", content(tensor)
    yield f"{path}: requires_grad", tensor.requires_grad
    if tensor.is_leaf and tensor.grad is not None:
        yield f"{path}: grad", Same(tensor.grad)
        yield from _tensor(f"{path}.grad", tensor.grad)


def _walk(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, object]]:
    if isinstance(value, _PLAIN):
        yield path, (type(value), value)
        return
    yield path, Same(value)
    if id(value) in seen or isinstance(value, type) or (callable(value) and not _inner(value)):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield from _tensor(path, value)
    if isinstance(value, dict):
        yield f"{path}: keys", [Same(k) if not isinstance(k, _PLAIN) else k for k in value]
        for key, item in value.items():
            yield from _walk(f"{path}[{key!r}]", item, seen)
    elif isinstance(value, list | tuple):
        yield f"{path}: length", len(value)
        for place, item in enumerate(value):
            yield from _walk(f"{path}[{place}]", item, seen)
    elif isinstance(value, set):
        yield f"{path}: members", {*value}
    members = getattr(value, "__dict__", None)
    if members:
        yield f"{path}: names", list(members)
        for name, item in members.items():
            yield from _walk(f"{path}.{name}", item, seen)
    for name in getattr(type(value), "__slots__", ()):
        yield from _walk(f"{path}.{name}", getattr(value, name, "no value"), seen)


def _inner(value: object) -> bool:
    return isinstance(value, nn.Module | torch.Tensor)


def surroundings() -> dict[str, object]:
    """The random states and switches of the process."""
    _, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": (keys.tobytes(), *rest),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "fused attention": torch.backends.mha.get_fastpath_enabled(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
    }


def state_of(model: nn.Module, *others: object, process: bool = True) -> dict[str, object]:
    """Every object that a model (and whatever else is given) consists of, and what it holds.

    Args:
        model: the model, in its wrappers or not.
        others: values that must stay as well: an example, a dict that was passed.
        process: include random states and switches.

    Returns:
        By path: identities, the order of names, bytes, versions, flags, gradients, hook tables.
    """
    seen: set[int] = set()
    found = dict(_walk("model", model, seen))
    for place, other in enumerate(others):
        found |= dict(_walk(f"other {place}", other, seen))
    for entry in tree.index(model).tensors.values():
        found[f"addresses of {id(entry.tensor)}"] = entry.addresses
    return found | (surroundings() if process else {})


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What became different, in words."""
    missing = object()
    return [
        f"{path}: {_brief(before.get(path, missing))} -> {_brief(after.get(path, missing))}"
        for path in {**before, **after}
        if before.get(path, missing) != after.get(path, missing)
    ]


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 90 else f"{text[:87]}..."
