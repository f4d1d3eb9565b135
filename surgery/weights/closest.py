"""Names that nearly fit: what to show where too little matches."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher

from surgery.weights.value import TensorInfo

# Comparing names is slow, and nobody reads more than a few lines.
_LOOKED_AT = 40
_SHOWN = 5


def closest(
    model: Mapping[str, TensorInfo], source: Mapping[str, TensorInfo]
) -> tuple[tuple[str, str], ...]:
    """Pair up unmatched tensors of one shape, the most similar names first.

    Args:
        model: of the model's, those that match nothing.
        source: the same of the source.

    Returns:
        Up to five pairs of a model's key and a source's; fewer or none where nothing has the
        same shape.

    Example:
        >>> import torch
        >>> from surgery.weights.memory import describe
        >>> one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> model = describe({f"head.{k}": v for k, v in one.state_dict().items()})
        >>> source = describe({f"fc.{k}": v for k, v in other.state_dict().items()})
        >>> closest(model, source)
        (('head.weight', 'fc.weight'), ('head.bias', 'fc.bias'))
    """
    shapes: dict[tuple[int, ...], list[str]] = {}
    for key, info in source.items():
        known = shapes.setdefault(info.shape, [])
        if len(known) < _LOOKED_AT:
            known.append(key)
    # Scalars are all alike and say nothing.
    fitting = [(key, shapes[info.shape]) for key, info in model.items() if info.shape in shapes]
    fitting.sort(key=lambda item: not model[item[0]].shape)
    scored = []
    for key, others in fitting[:_LOOKED_AT]:
        score, other = max((_similarity(key, other), other) for other in others)
        scored.append((score, key, other))
    scored.sort(key=lambda item: -item[0])
    pairs: dict[str, str] = {}
    for _, key, other in scored:
        if other not in pairs.values():
            pairs[key] = other
    return tuple(pairs.items())[:_SHOWN]


def _similarity(left: str, right: str) -> float:
    # Whole components count beside letters: a name that ends alike is the likelier one.
    parts = SequenceMatcher(None, left.split("."), right.split(".")).ratio()
    return parts + SequenceMatcher(None, left, right).ratio()
