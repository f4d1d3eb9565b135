"""What a checkpoint calls the tensors of the model that it was saved from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from surgery.weights.match import match
from surgery.weights.value import TensorInfo
from surgery.weights.verdicts import Matching


def verdicts(
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    given: Mapping[str, TensorInfo],
) -> Matching:
    """Match a model that is known by its shapes with a checkpoint, as where it is loaded.

    Args:
        shapes: of the model's tensors, by first address.
        names: every name in its state dict, to the first address.
        given: what the checkpoint has.

    Raises:
        PlanError: two parts of the checkpoint fit equally well, or two tensors go to one.

    Example:
        >>> given = {"module.fc.bias": TensorInfo((2,), torch.float32, 8)}
        >>> names = {"fc.bias": "fc.bias"}
        >>> spelled(names, verdicts({"fc.bias": (2,)}, names, given))
        {'fc.bias': 'module.fc.bias'}
    """
    same: dict[str, list[str]] = {}
    for name, first in names.items():
        same.setdefault(first, []).append(name)
    wanted = {
        name: TensorInfo(
            shapes[first],
            torch.float32,
            4 * math.prod(shapes[first]),
            tuple(other for other in same[first] if other != name),
        )
        for name, first in names.items()
    }
    return match(wanted, given, min_coverage=0)


def spelled(names: Mapping[str, str], matching: Matching) -> dict[str, str]:
    """The checkpoint's names by first address, also of what has another shape there.

    Args:
        names: every name in the model's state dict, to the first address.
        matching: of the model and the checkpoint.
    """
    pairs = {item.key: item.source for item in matching.mismatched} | dict(matching.pairs)
    return {names[key]: name for key, name in pairs.items()}
