"""What an optimizer's state is before it learned anything, found by one step on a stand-in.

An optimizer does not say which of its state belongs to single entries of a parameter, nor what it
starts from. A stand-in whose sides are all different, stepped once with a gradient of zero, shows
both; a second one, whose values are all different, shows what starts from those. The optimizer
itself is not touched, and none of its hooks runs.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from surgery.operations.draws import Draws
from surgery.optimizers.keepers import State

# No side is as long as another, as one of state made of them may be, or as one.
_SIDES = (2, 3, 5, 7, 11)
# Longer than any side from which on an optimizer keeps state of another form.
_LONG = 257


class _Noting(dict[str, Any]):
    """The state of a stand-in, that notes what it is first given under each name."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.first.setdefault(name, _apart(value))
        super().__setitem__(name, value)


@dataclass(frozen=True, eq=False)
class Zero:
    """How the state of a parameter starts.

    Attributes:
        starts: for each state tensor of the parameter's shape, the value it starts from.
        values: names of those that start from the values of the parameter instead: where it
            began, or an average of it.
        spanning: names of state tensors of another shape.
        found: whether the stand-in could be stepped; otherwise shapes decide, and zeros are taken.
    """

    starts: Mapping[str, complex] = field(default_factory=dict)
    values: frozenset[str] = frozenset()
    spanning: frozenset[str] = frozenset()
    found: bool = False


def zero_of(optimizer: Optimizer, group: Mapping[str, Any], parameter: torch.Tensor) -> Zero:
    """How the state of a parameter starts in a group of an optimizer.

    Args:
        optimizer: any optimizer; it stays as it is.
        group: the group, whose options count.
        parameter: a parameter of the number of axes, the dtype and the device that count.

    Example:
        >>> from torch.optim import Adagrad
        >>> from surgery.optimizers.zero import zero_of
        >>> weight = nn.Parameter(torch.ones(4, 3))
        >>> optimizer = Adagrad([weight], initial_accumulator_value=0.5)
        >>> dict(zero_of(optimizer, optimizer.param_groups[0], weight).starts)
        {'sum': 0.5}
    """
    if parameter.dim() > len(_SIDES) or parameter.is_meta:
        return Zero()
    shape = _SIDES[: parameter.dim()]
    zeros = torch.zeros(shape, device=parameter.device).to(parameter.detach())
    distinct = torch.arange(1, zeros.numel() + 1, device=zeros.device).view(shape).to(zeros)
    draws = Draws()
    try:
        _, state = _stepped(optimizer, group, zeros)
        after, other = _stepped(optimizer, group, distinct.clone(), weight_decay=0)
    except Exception:  # an optimizer's own code: anything can come out
        return Zero()
    finally:
        draws.take_back()
    tensors = {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}
    alike = {name: each for name, each in tensors.items() if tuple(each.shape) == shape}
    # An average may begin with what comes out of the first step.
    values = {name for name in alike if _is_any(other.get(name), (distinct, after))}
    # Before the step where that was seen: some decay what they start from.
    first = {name: state.first.get(name, each) for name, each in alike.items()}
    starts = {
        name: each.flatten()[0].item()
        for name, each in first.items()
        if name not in values and bool((each == each.flatten()[0]).all())
    }
    scalars = {name for name, each in tensors.items() if not each.dim()}
    spanning = frozenset(tensors.keys() - alike.keys() - scalars)
    return Zero(starts, frozenset(values), spanning, True)


def is_kept_alike(
    optimizer: Optimizer, group: Mapping[str, Any], old: torch.Tensor, new: torch.Tensor
) -> bool:
    """Whether an optimizer keeps the same state of two shapes: some go over to sums at a size.

    Args:
        optimizer: any optimizer; it stays as it is.
        group: the group, whose options count.
        old: the parameter that the state is of.
        new: the one that it is for.
    """
    shapes = [tuple(min(side, _LONG) for side in each.shape) for each in (old, new)]
    if shapes[0] == shapes[1] or old.is_meta:
        return True
    draws = Draws()
    try:
        states = [_stepped(optimizer, group, old.new_zeros(shape))[1] for shape in shapes]
    except Exception:  # an optimizer's own code: anything can come out
        return True
    finally:
        draws.take_back()
    return states[0].keys() == states[1].keys()


def goes_by_others(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: torch.Tensor, axis: int
) -> bool:
    """Whether how far an entry moves hangs on the others along an axis, by a norm for instance.

    Args:
        optimizer: any optimizer; it stays as it is.
        group: the group, whose options count.
        parameter: a parameter of the number of axes, the dtype and the device that count.
        axis: where the entries are.
    """
    if parameter.dim() > len(_SIDES) or parameter.is_meta:
        return False
    shape = _SIDES[: parameter.dim()]
    values = torch.arange(1, math.prod(shape) + 1, device=parameter.device).view(shape)
    values = values.to(torch.promote_types(parameter.dtype, torch.float32))
    ones = torch.ones_like(values)
    first = torch.zeros_like(values)
    first.select(axis, 0).fill_(1)
    after = []
    for start, pull in ((values, ones), (values * (3 - 2 * first), first)):
        draws = Draws()
        try:
            # A rate that is warmed up may be nothing yet; what is clipped is so where it grows.
            made, _ = _stepped(optimizer, group, start.clone(), (pull, 4 * pull), lr=0.1)
            after.append(made.select(axis, 0))
        except Exception:  # an optimizer's own code: anything can come out
            return False
        finally:
            draws.take_back()
    one, another = after
    return not torch.allclose(one, another, rtol=1e-5)


def made_ahead(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: torch.Tensor
) -> State | None:
    """The state that an optimizer only makes when it is made, and that its steps rely on.

    Args:
        optimizer: any optimizer; it stays as it is.
        group: the group, whose options count.
        parameter: a parameter that comes to it later.

    Returns:
        The state to give it; None for an optimizer that makes its state at the first step.
    """
    shape = (_SIDES + (1,) * parameter.dim())[: parameter.dim()]
    device = "cpu" if parameter.is_meta else parameter.device
    values = torch.zeros(shape, dtype=parameter.dtype, device=device)
    options = {name: _apart(value) for name, value in group.items() if name != "params"}
    draws = Draws()
    try:
        _run(optimizer, options, nn.Parameter(values), (torch.zeros_like(values),), {})
    except KeyError:
        try:
            return _constructed(optimizer, options, parameter) or None
        except Exception:  # an optimizer's own code: anything can come out
            return None
    except Exception:  # likewise
        return None
    finally:
        draws.take_back()
    return None


def _is_any(found: object, others: tuple[torch.Tensor, ...]) -> bool:
    if not isinstance(found, torch.Tensor):
        return False
    return any(found.shape == each.shape and bool((found == each).all()) for each in others)


def _stepped(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    values: torch.Tensor,
    gradients: Sequence[torch.Tensor] = (),
    **others: Any,
) -> tuple[torch.Tensor, _Noting]:
    """A stand-in and its state, after steps of an optimizer made of the same options.

    One with a gradient of zero, if none are given.
    """
    options = {name: _apart(value) for name, value in group.items() if name != "params"}
    options |= {name: value for name, value in others.items() if name in options}
    steps = gradients or (torch.zeros_like(values),)
    try:
        return _run(optimizer, options, nn.Parameter(values.clone()), steps, {})
    except KeyError:
        ahead = _constructed(optimizer, options, values)
        if not ahead:
            raise
        return _run(optimizer, options, nn.Parameter(values.clone()), steps, ahead)


def _run(
    optimizer: Optimizer,
    options: Mapping[str, Any],
    stand_in: nn.Parameter,
    gradients: Sequence[torch.Tensor],
    ahead: State,
) -> tuple[torch.Tensor, _Noting]:
    cls = type(optimizer)
    held: defaultdict[torch.Tensor, _Noting] = defaultdict(_Noting)
    for name, value in ahead.items():
        held[stand_in][name] = value
    names = {"param_names": ["stand_in"]} if "param_names" in options else {}
    other = cls.__new__(cls)
    # Where the parameter is, whatever the default device is.
    with warnings.catch_warnings(), torch.no_grad(), stand_in.device:
        warnings.simplefilter("ignore")
        other.__setstate__(
            {
                "defaults": dict(optimizer.defaults),
                "state": held,
                "param_groups": [{**options, **names, "params": [stand_in]}],
            }
        )
        # What is hung around a step (hooks, the count of a scheduler) is about real steps.
        step = inspect.unwrap(cls.step)
        for gradient in gradients:
            stand_in.grad = gradient
            try:
                step(other)
            except RuntimeError:
                # Some take nothing but the rows that were looked up.
                stand_in.grad = gradient.to_sparse()
                step(other)
    return stand_in.detach(), held[stand_in]


def _constructed(optimizer: Optimizer, options: Mapping[str, Any], values: torch.Tensor) -> State:
    """What the constructor of an optimizer makes of a parameter with such values."""
    cls, stand_in = type(optimizer), nn.Parameter(values.detach())
    known = inspect.signature(cls).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in known}
    group = {name: value for name, value in options.items() if name != "param_names"}
    with warnings.catch_warnings(), values.device:
        warnings.simplefilter("ignore")
        made = cls([{**group, "params": [stand_in]}], **settings)
    return dict(made.state.get(stand_in, {}))


def _apart(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
