"""Checkpoints as values: what lies in them without reading it, and tensors by name on demand."""

from surgery.weights.source import read
from surgery.weights.value import TensorInfo, Weights

__all__ = ["TensorInfo", "Weights", "read"]
