"""How far apart the values of two tensors of one shape are: slice by slice, exact for integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from surgery.weights.stored import fills

# Elements of one slice. In float64 it stays in a processor's cache, and whatever the tensors
# take, what is computed on the way takes a few megabytes.
_SLICE = 1 << 18
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_TOP = 2**64
# Others have no sum, or one that overflows soon.
_SUMMED = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Distance:
    """How far apart two tensors of one shape are.

    Attributes:
        elements: how many each has.
        changed: how many differ, by more than the tolerance where there is one. NaN equals NaN,
            and -0.0 equals 0.0.
        apart: how many differ at all.
        largest: the largest absolute difference, of elements that are finite on both sides. Exact
            for integers.
        difference: the L2 norm of the difference, of the same elements.
        norm: the L2 norm of the first, of its finite elements.
        nonfinite: how many elements of the first and of the second are NaN or infinite.
    """

    elements: int
    changed: int = 0
    apart: int = 0
    largest: float = 0
    difference: float = 0.0
    norm: float = 0.0
    nonfinite: tuple[int, int] = (0, 0)

    @property
    def relative(self) -> float | None:
        """The L2 norm of the difference by that of the first; None where the latter is zero."""
        if self.norm:
            return self.difference / self.norm
        return None if self.difference else 0.0


def together(distances: Iterable[Distance]) -> Distance:
    """The distance between all of several pairs, as if each side were one long tensor.

    Example:
        >>> together([Distance(2, 1, 1, 3, 3.0, 1.0), Distance(2, 2, 2, 4, 4.0)]).difference
        5.0
    """
    found = list(distances)
    return Distance(
        sum(each.elements for each in found),
        sum(each.changed for each in found),
        sum(each.apart for each in found),
        max((each.largest for each in found), default=0),
        math.hypot(*(each.difference for each in found)),
        math.hypot(*(each.norm for each in found)),
        (sum(each.nonfinite[0] for each in found), sum(each.nonfinite[1] for each in found)),
    )


def distance(
    one: torch.Tensor, other: torch.Tensor, *, atol: float = 0.0, rtol: float = 0.0
) -> Distance:
    """Compare the values of two tensors of one shape, on the CPU and slice by slice.

    Slices with the same bytes are not computed with.

    Args:
        one: any tensor with values.
        other: another of its shape, of any dtype and on any device.
        atol: how far apart floating or complex elements may be and count as unchanged,
        rtol: and how much more for each unit of the first's absolute value.

    Returns:
        The distance. Its ``norm`` is 0 where all is equal: nobody needs it then.

    Example:
        >>> found = distance(torch.tensor([1.0, float("nan")]), torch.tensor([1.5, float("nan")]))
        >>> found.changed, found.largest, found.nonfinite
        (1, 0.5, (1, 1))
        >>> distance(torch.tensor([-(2**63)]), torch.tensor([2**63 - 1])).largest == 2**64 - 1
        True
    """
    measure = _measure(one, other, atol, rtol)
    flat = _flat(_dense(one), _dense(other))
    parts: list[Distance] = []
    same: list[int] = []
    for start in range(0, one.numel(), _SLICE):
        left, right = (_slice(tensor, start) for tensor in flat)
        if _same_bytes(left, right) and _sum_is_finite(left):
            same.append(start)
        else:
            parts.append(measure(left, right))
    apart = any(part.apart for part in parts)
    for start in same:
        left = _slice(flat[0], start)
        # The norm of what is equal counts only beside something that is not.
        parts.append(Distance(left.numel(), norm=_norm(_wide(left)) if apart else 0.0))
    return together(parts)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _flat(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as one long row, the same elements at the same places."""
    if one.stride() == other.stride() and fills(tuple(one.shape), one.stride()):
        # In the order of their bytes, whatever the order of the axes: nothing is copied.
        size = (one.numel(),)
        left, right = one.as_strided(size, (1,)), other.as_strided(size, (1,))
        return left, right
    return one.reshape(-1), other.reshape(-1)


def _slice(flat: torch.Tensor, start: int) -> torch.Tensor:
    return flat[start : start + _SLICE].cpu().resolve_conj().resolve_neg()


def _same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype:
        return False
    size = left.numel() * left.element_size()
    starts = [t.data_ptr() for t in (left, right)]
    starts += [int(t.storage_offset()) * t.element_size() for t in (left, right)]
    # Whole numbers are compared, since NaN does not equal itself: the widest that fit.
    word = next(w for w in _WORDS if not any(n % w.itemsize for n in (size, *starts)))
    return torch.equal(left.view(word), right.view(word))


def _sum_is_finite(part: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite, in one pass; False where that is not sure."""
    if not (part.dtype.is_floating_point or part.dtype.is_complex):
        return True
    if part.dtype not in _SUMMED:
        part = _wide(part)
    return bool(torch.isfinite(part.sum()))


def _measure(
    one: torch.Tensor, other: torch.Tensor, atol: float, rtol: float
) -> Callable[[torch.Tensor, torch.Tensor], Distance]:
    whole = [not (t.dtype.is_floating_point or t.dtype.is_complex) for t in (one, other)]
    wide = [t.dtype == torch.uint64 for t in (one, other)]
    if all(whole) and not (one.is_quantized or other.is_quantized) and wide[0] == wide[1]:
        return _integers
    # The tolerance is of floating numbers: where one side has none, both must be equal.
    slack = (0.0, 0.0) if any(whole) else (atol, rtol)
    return lambda left, right: _numbers(left, right, *slack)


def _integers(left: torch.Tensor, right: torch.Tensor) -> Distance:
    one, other = _ordered(left), _ordered(right)
    apart = int((one != other).sum())
    # The difference of two 64-bit numbers needs 64 bits without a sign: what wraps is above 2^63.
    gap = torch.maximum(one, other) - torch.minimum(one, other)
    wrapped = gap < 0
    size = gap.double()
    if bool(wrapped.any()):
        largest = int(gap[wrapped].max()) + _TOP
        size = size + wrapped * float(_TOP)
    else:
        largest = int(gap.max())
    return Distance(left.numel(), apart, apart, largest, _norm(size), _norm(left.double()))


def _ordered(part: torch.Tensor) -> torch.Tensor:
    """As 64-bit integers, in the same order and at the same distances."""
    if part.dtype == torch.uint64:
        return part.view(torch.int64) ^ -(2**63)
    return part.to(torch.int64)


def _numbers(left: torch.Tensor, right: torch.Tensor, atol: float, rtol: float) -> Distance:
    one, other = _wide(left), _wide(right)
    finite = torch.isfinite(one), torch.isfinite(other)
    counts = one.numel() - int(finite[0].sum()), other.numel() - int(finite[1].sum())
    differs = one != other
    both = None
    if any(counts):
        differs &= ~(one.isnan() & other.isnan())
        both = finite[0] & finite[1]
    gap = (other - one).abs()
    if both is not None:
        gap = torch.where(both, gap, 0.0)
    beyond = differs
    if atol or rtol:
        close = gap <= atol + rtol * one.abs()
        beyond = differs & ~(close if both is None else close & both)
    first = one if not counts[0] else torch.where(finite[0], one, 0.0)
    return Distance(
        one.numel(),
        int(beyond.sum()),
        int(differs.sum()),
        float(gap.max()),
        _norm(gap),
        _norm(first),
        counts,
    )


def _wide(part: torch.Tensor) -> torch.Tensor:
    return part.to(torch.complex128 if part.dtype.is_complex else torch.float64)


def _norm(part: torch.Tensor) -> float:
    """The L2 norm, also where squares would be too large or too small."""
    norm = float(torch.linalg.vector_norm(part))
    if norm and math.isfinite(norm) and norm > 1e-150:
        return norm
    most = float(part.abs().max())
    if not most or not math.isfinite(most):
        return most
    return most * float(torch.linalg.vector_norm(part / most))
