"""What is known of operators by their names: which are pointwise, which sum over features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

# Pointwise as well, and not tagged so.
_UNTAGGED = frozenset({"copy_", "copy", "dropout", "_prelu_kernel", "masked_fill", "masked_fill_"})


@cache
def operator(name: str) -> Any:
    """The operator of a node's name, or None: ``aten.add.Tensor``."""
    parts = name.split(".")
    found: Any = torch.ops
    for part in parts:
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


@cache
def is_pointwise(name: str) -> bool:
    """Whether an operator works element by element, with broadcasting."""
    tags = getattr(operator(name), "tags", ())
    return torch.Tag.pointwise in tags or packet(name) in _UNTAGGED


def packet(name: str) -> str:
    """The operator's name without namespace and overload: ``aten.add.Tensor`` is ``add``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else name


# Operators that sum over features, and where their two factors stand among the arguments.
CONTRACTIONS: Mapping[str, tuple[int, int]] = {
    "mm": (0, 1),
    "addmm": (1, 2),
    "_addmm_activation": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "dot": (0, 1),
    "vdot": (0, 1),
    "linear": (0, 1),
    "mkldnn_linear": (0, 1),
    "convolution": (0, 1),
    "_convolution": (0, 1),
    "mkldnn_convolution": (0, 1),
    "cudnn_convolution": (0, 1),
    "miopen_convolution": (0, 1),
    "convolution_overrideable": (0, 1),
    "_trilinear": (0, 1),
    "_cdist_forward": (0, 1),
    "_euclidean_dist": (0, 1),
    "_int_mm": (0, 1),
    "_scaled_mm": (0, 1),
}
