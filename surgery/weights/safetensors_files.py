"""The safetensors format, with what torch has for it: dtypes, and where each tensor lies."""

from __future__ import annotations

import torch

from surgery.weights import header
from surgery.weights.header import Header
from surgery.weights.sizes import contiguous
from surgery.weights.stored import Place

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.name) for name, dtype in header.DTYPES.items()
}


def places(found: Header) -> dict[str, Place]:
    """Where each tensor lies in a file, by name.

    Args:
        found: its header.
    """
    return {
        name: Place(span.begin, getattr(torch, span.dtype.name), span.shape, contiguous(span.shape))
        for name, span in found.spans.items()
    }
