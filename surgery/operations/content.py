"""Values that are written into a tensor that stays: read late, and with one copy where torch can.

A tensor that owns its memory gets other memory, and the old is what undo puts back: one copy of
the bytes in all. A tensor that shares it (a view, a captured graph, another process) is written in
place, after its values were set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

PLAIN = (torch.Tensor, nn.Parameter)

# What a storage counts of a tensor that nobody shares memory with: the tensor, and who asks.
_ALONE = 2


@dataclass(frozen=True, eq=False)
class Content:
    """Values for a tensor, read when their turn comes.

    Attributes:
        read: gives the values, of the tensor's own shape; any dtype and device.
        fresh: nobody else holds what ``read`` gives, so that it may become the tensor's memory.
    """

    read: Callable[[], torch.Tensor]
    fresh: bool = False


def memory_for(tensor: torch.Tensor, values: torch.Tensor, fresh: bool) -> torch.Tensor | None:
    """Memory with these values that may take the place of a tensor's own.

    Args:
        tensor: what is written to; it stays as it is.
        values: any dtype and device, of the same shape.
        fresh: nobody else holds ``values``.

    Returns:
        Values with the dtype, device and strides of the tensor, or None where the tensor must be
        written in place.
    """
    if not owns_its_memory(tensor):
        return None
    with torch.inference_mode(tensor.is_inference()):
        here, values = tensor.data, values.detach()
        if fresh and _same_form(values, here):
            return values
        new = torch.empty_like(here)
        return new.copy_(values) if _same_form(new, here) else None


def _same_form(one: torch.Tensor, other: torch.Tensor) -> bool:
    forms = ((t.shape, t.stride(), t.dtype, t.device, t.is_inference()) for t in (one, other))
    return next(forms) == next(forms) and type(one) is torch.Tensor


def owns_its_memory(tensor: torch.Tensor) -> bool:
    """Whether nothing else would notice if a tensor moved to other memory.

    Only on the CPU: elsewhere a captured graph of kernels may hold the address.
    """
    if type(tensor) not in PLAIN or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    storage = tensor.untyped_storage()
    if tensor.storage_offset() or storage.nbytes() != tensor.numel() * tensor.element_size():
        return False
    if tensor.is_shared() or tensor.is_pinned():  # type: ignore[no-untyped-call]
        return False
    return int(torch._C._storage_Use_Count(storage._cdata)) <= _ALONE


def write_in_place(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Write values into the memory that a tensor has, past autograd."""
    if not tensor.is_meta:
        with torch.inference_mode(tensor.is_inference()):
            tensor.data.copy_(values.detach())


def set_version(tensor: torch.Tensor, version: int) -> None:
    """Give a tensor the version it had: its bytes are again those of then."""
    if tensor._version != version:
        torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def region(tensor: torch.Tensor) -> tuple[torch.device, int, int] | None:
    """The memory that a tensor spans: device, first byte, byte after the last; None for none."""
    if type(tensor) not in PLAIN or tensor.layout != torch.strided or tensor.is_meta:
        return None
    if not tensor.numel():
        return None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    length = (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()
    return tensor.device, tensor.data_ptr(), tensor.data_ptr() + length
