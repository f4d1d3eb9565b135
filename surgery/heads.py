"""Where a model makes its classes: heads, and the evidence that they are heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgery.families.registry import Registry
from surgery.findings import Evidence, Head, HeadOutput, Heads
from surgery.survey import survey

__all__ = ["Evidence", "Head", "HeadOutput", "Heads", "find_heads"]


def find_heads(model: nn.Module, example: Any = None, *, registry: Registry | None = None) -> Heads:
    """Find the layers that make the class outputs of a model.

    Walks back from every output, in eval and in train mode, to the nearest operations that mix
    features with parameters. What the walk yields are candidates; a head is corroborated where a
    family, or an attribute such as ``num_classes`` with that number, says so too.

    Args:
        model: any module. It is neither run nor touched.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        registry: the plugins to ask; those installed, if left out. ``Registry.of()`` asks none.

    Returns:
        The heads in the order of the outputs they make, corroborated or not. Where there is
        none, ``.ending`` says what the model ends in.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        ExampleError: no example could be inferred, or forward does not take it.
        RecordError: forward raised.
        ClaimContradictedError: the family of the model claims another layer than the graph shows.

    Example:
        >>> import torch, surgery
        >>> first, last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 5)
        >>> model = torch.nn.Sequential(first, torch.nn.ReLU(), last)
        >>> head = surgery.find_heads(model, torch.zeros(2, 8))[0]
        >>> head.address, head.kind, head.in_features, head.num_classes, head.corroborated
        ('2', 'linear', 16, 5, False)
    """
    return survey(model, example, registry=registry).heads
