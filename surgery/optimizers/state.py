"""The state of one parameter, carried over to the parameter that takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch

from surgery.operations.plan import Carried
from surgery.optimizers.keepers import State
from surgery.optimizers.zero import Zero


@dataclass(frozen=True, eq=False)
class Carry:
    """What came of carrying a state.

    Attributes:
        state: the new one, None where it starts anew.
        entries: how many entries along the axis have what they had, and how many there are.
        reason: why it starts anew, or what is not known of how new entries start.
        step: the step count it goes on with.
    """

    state: State | None
    entries: tuple[int, int] | None = None
    reason: str = ""
    step: float | None = None


def carry(
    state: Mapping[str, Any],
    old: torch.Tensor,
    new: torch.Tensor,
    carried: Carried,
    zero: Zero,
) -> Carry:
    """Carry a state over, entry by entry, to a parameter of another length along one axis.

    A state tensor of the parameter's shape belongs to its entries: those that live on keep
    theirs, one that takes the place of several gets their mean, and new ones get what the
    optimizer starts from. Numbers, the step count among them, are kept. Where there is anything
    else, or nothing says what new entries start from, the whole starts anew.

    Args:
        state: of the old parameter; it stays as it is.
        old: the old parameter.
        new: the new one.
        carried: which entries live on.
        zero: what the optimizer starts from.
    """
    made: State = {}
    guessed = []
    grown = not all(carried.sources)
    for name, value in state.items():
        kind = _kind(name, value, old, zero)
        if kind == "entries" and name in zero.values:
            if not _is_whole(carried):
                return Carry(None, reason=f"{name!r} is of values that were mixed or scaled")
            made[name] = carried_tensor(value, carried, new)
        elif kind == "entries":
            known = name in zero.starts
            if grown and zero.found and not known:
                return Carry(None, reason=f"nothing says what new entries of {name!r} start from")
            guessed += [name] if grown and not known else []
            made[name] = carried_tensor(value, carried, new, zero.starts.get(name, 0.0))
        elif kind == "number":
            made[name] = value.clone() if isinstance(value, torch.Tensor) else value
        else:
            return Carry(None, reason=f"{name!r} ({_brief(value)}) is not made entry by entry")
    kept = sum(bool(found) for found in carried.sources)
    names = ", ".join(map(repr, guessed))
    reason = f"new entries of {names} start from 0, as nothing says otherwise" if names else ""
    return Carry(made, (kept, len(carried.sources)), reason, step_of(made))


def carry_gradient(old: torch.Tensor, new: torch.Tensor, carried: Carried) -> torch.Tensor | None:
    """What a gradient that is being accumulated is worth to the parameter that takes the place.

    Args:
        old: the old parameter.
        new: the new one.
        carried: which entries live on.

    Returns:
        The gradient for the new one, zero in its new entries; None where there is none, or where
        entries live on mixed or scaled, so that their gradients would be others.
    """
    gradient = old.grad
    if gradient is None or new.grad is not None or not new.requires_grad:
        return None
    if gradient.layout != torch.strided or gradient.is_meta or not _is_whole(carried):
        return None
    return carried_tensor(gradient, carried, new, 0.0).to(new.device, new.dtype)


def _is_whole(carried: Carried) -> bool:
    """Whether every entry that lives on has the values of a single one."""
    factors = carried.factors
    if factors is None or any(len(found) > 1 for found in carried.sources):
        return False
    return all(factor == 1 for each in factors for factor in each)


def carried_tensor(
    value: torch.Tensor, carried: Carried, new: torch.Tensor, start: complex | None = None
) -> torch.Tensor:
    """A tensor whose entries along an axis come from those of another.

    Args:
        value: the other.
        carried: which entries live on.
        new: the parameter that it is for.
        start: what the rest is; left out, what it is in the parameter.
    """
    axis, plain = carried.axis, value.detach()
    # The layout in memory is that of the old one, as an optimizer makes its state.
    made = _longer(plain, axis, new.shape[axis])
    made.copy_(new.detach()) if start is None else made.fill_(start)
    single = {to: found[0] for to, found in enumerate(carried.sources) if len(found) == 1}
    if single:
        source = torch.tensor(list(single.values()), device=plain.device)
        target = torch.tensor(list(single), device=plain.device)
        made.index_copy_(axis, target, plain.index_select(axis, source))
    for to, found in enumerate(carried.sources):
        if len(found) > 1:
            source = torch.tensor(found, device=plain.device)
            made.select(axis, to).copy_(plain.index_select(axis, source).mean(axis))
    return made


def _longer(tensor: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[axis] = length
    made = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    last = torch.channels_last
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=last):
        return made if tensor.is_contiguous() else made.contiguous(memory_format=last)
    return made


def step_of(state: Mapping[str, Any]) -> float | None:
    """The step count in a state, where it has one."""
    value = state.get("step")
    if isinstance(value, torch.Tensor):
        return None if value.is_meta or value.numel() != 1 else float(value)
    return float(value) if isinstance(value, int | float) else None


def _kind(name: str, value: object, old: torch.Tensor, zero: Zero) -> str:
    if isinstance(value, torch.Tensor):
        if name in zero.spanning:
            return "other"
        if value.dim() and value.shape == old.shape:
            # Of a subclass nobody knows what its entries are: quantised state is made in blocks.
            plain = type(value) in (torch.Tensor, torch.nn.Parameter)
            return "entries" if plain and value.layout == torch.strided else "other"
        return "number" if not value.dim() else "other"
    return "number" if value is None or isinstance(value, Number | str | bool) else "other"


def _brief(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
