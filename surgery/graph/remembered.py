"""Shapes of results, remembered: the ``meta`` kernels of torch are mostly slow Python.

A batch normalisation takes a millisecond on ``meta`` to say that its result looks like its input.
What an operator returns there depends on the shapes, strides and dtypes of its arguments alone, and
a network asks for the same few hundred again and again. What it writes has no values to change.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, TypeAlias

import torch
from torch.utils.flop_counter import flop_registry

from surgery.graph.operators import Call

# Beyond this many entries everything is forgotten, so that memory stays bounded (a few MB).
LIMIT = 20_000

# Size, stride and dtype of one result; None for a result left out.
_Layout: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype] | None

_META = torch.device("meta")
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_SCALARS = frozenset(
    {type(None), bool, int, float, complex, str}
    | {torch.dtype, torch.layout, torch.memory_format, torch.device}
)

_layouts: dict[Hashable, tuple[type | None, list[_Layout]]] = {}
_flops: dict[Hashable, int] = {}


def run(call: Call) -> Any:
    """Run an operator whose tensors are all on ``meta``, or recall what it returns.

    Args:
        call: an operator that ``returns_new`` tensors; ``key`` is set where it has one.

    Returns:
        What the operator returns: new tensors on ``meta``.
    """
    call.key = key = _key(call)
    if key is None:
        return call.func(*call.args, **call.kwargs)
    known = _layouts.get(key)
    if known is None:
        result = call.func(*call.args, **call.kwargs)
        _remember(key, call, result)
        return result
    kind, layouts = known
    made = [
        None
        if layout is None
        else torch.empty_strided(layout[0], layout[1], dtype=layout[2], device=_META)
        for layout in layouts
    ]
    return made[0] if kind is None else kind(made)


def forget() -> None:
    """Forget everything, as a new process would begin."""
    _layouts.clear()
    _flops.clear()


def flops(call: Call, result: Any) -> int:
    """Floating-point operations of a call that ran, by the formulas of torch.

    Args:
        call: the operator and its arguments.
        result: what it returned.

    Returns:
        The number; 0 where there is no formula.
    """
    formula = flop_registry.get(call.func._overloadpacket)
    if formula is None:
        return 0
    known = _flops.get(call.key) if call.key is not None else None
    if known is None:
        known = int(formula(*call.args, **call.kwargs, out_val=result))
        # Keys are those of layouts, so that both are forgotten together.
        if call.key in _layouts:
            _flops[call.key] = known
    return known


def _key(call: Call) -> Hashable:
    """Everything the shapes of the results depend on; None where that is not known."""
    # A Python number meets an integer tensor in the default dtype.
    parts: list[Any] = [call.func, torch.get_default_dtype()]
    if not _described(call.args, parts):
        return None
    if call.kwargs and not _described(sorted(call.kwargs.items()), parts):
        return None
    return tuple(parts)


def _described(values: Iterable[Any], parts: list[Any]) -> bool:
    """Append a description of each value; False where one has none."""
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            if value.layout is not torch.strided:
                return False
            parts += (value.shape, value.stride(), value.dtype)
        elif kind in _SCALARS:
            # With its type: 1, 1.0 and True are equal and promote differently.
            parts += (kind, value)
        elif kind is list or kind is tuple:
            parts.append(len(value))
            if not _described(value, parts):
                return False
        else:
            return False
    return True


def _remember(key: Hashable, call: Call, result: Any) -> None:
    several = type(result) in (list, tuple)
    items = result if several else (result,)
    if not all(item is None or _is_plain(item, call) for item in items):
        return
    if len(_layouts) >= LIMIT:
        forget()
    layouts = [None if item is None else (item.shape, item.stride(), item.dtype) for item in items]
    _layouts[key] = (type(result) if several else None, layouts)


def _is_plain(item: Any, call: Call) -> bool:
    """Whether a result is nothing but a new strided tensor."""
    return (
        type(item) is torch.Tensor
        and item.layout is torch.strided
        and not bool(item.is_quantized)
        and int(item.storage_offset()) == 0
        and all(item is not tensor for tensor in call.given)
    )
