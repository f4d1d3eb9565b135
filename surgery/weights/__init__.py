"""Checkpoints as values: what lies in them without reading it, and tensors by name on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.weights.source import read
    from surgery.weights.value import TensorInfo, Weights

__all__ = ["TensorInfo", "Weights", "read"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the header of a safetensors file is read without torch.
    if name in __all__:
        from surgery.weights import source

        value = globals()[name] = getattr(source, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
