"""The same operation on averaged copies of a model, so that averaging goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError, ArgumentError
from surgery.graph.graph import Spec
from surgery.operations.apply import apply
from surgery.operations.content import Content
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.size import growth
from surgery.operations.values import parameter_like

# Under which name the wrappers of the field keep the averaged copy.
_NAMES = ("module", "ema")
# What a frozen layer holds is about training, which a copy does not do.
_OF_TRAINING = ("train", "training")


def copies_of(averages: object) -> list[nn.Module]:
    """The averaged models, out of what averages them, each once.

    Args:
        averages: one average or several: a module that keeps its copy as ``module``, an object
            that keeps it as ``ema``, or the copy itself.

    Raises:
        ArgumentError: something that holds no module.
    """
    listed = averages if isinstance(averages, list | tuple) else (averages,)
    return list(dict.fromkeys(map(_copy_of, listed)))


def _copy_of(average: object) -> nn.Module:
    for name in _NAMES:
        held = getattr(average, name, None)
        if isinstance(held, nn.Module):
            return tree.unwrap(held)
    if isinstance(average, nn.Module):
        return tree.unwrap(average)
    raise ArgumentError(
        "this holds no averaged copy of a model",
        where="averages",
        expected="torch.optim.swa_utils.AveragedModel(model), or the copy itself",
        found=type(average).__name__,
        fix="surgery.follow(optimizer, outcome, averages=averaged)",
    )


def follow_on(outcome: Outcome, copies: list[nn.Module]) -> tuple[Outcome, ...]:
    """Carry an operation out on averaged copies of the model; all of them or none.

    Entries that live on keep their averages. New ones get the values of the model, as an average
    that begins now does.

    Args:
        outcome: what was done to the model.
        copies: of the model as it was before.

    Returns:
        The outcomes; undoing the first undoes all.

    Raises:
        ArgumentError: a copy is not like the model was.
    """
    plans = [_plan(outcome, each) for each in copies]
    done: list[Outcome] = []
    try:
        for each, plan in zip(copies, plans, strict=True):
            done.append(apply(each, plan))
        if done and done[0].operated is not None:
            done[0].operated.also = tuple(done[1:])
    except BaseException:
        for made in reversed(done):
            made.undo()
        raise
    return tuple(done)


def _plan(outcome: Outcome, average: nn.Module) -> Plan:
    if outcome.model is average:
        raise _unlike("averages", "a copy of the model", "the model itself")
    steps = tuple(_steps(outcome, average))
    asked = outcome.plan
    same = _dtype(average) == _dtype(tree.unwrap(outcome.model))
    return Plan(
        f"{asked.title} on an average",
        steps,
        asked.outputs if same else (),
        growth(average, steps),
        probes=asked.probes,
        example=asked.example,
    )


def _dtype(model: nn.Module) -> torch.dtype | None:
    return next((each.dtype for each in model.parameters()), None)


def _steps(outcome: Outcome, average: nn.Module) -> Iterator[Step]:
    counterparts = _Counterparts(outcome, average)
    for step in outcome.plan.steps:
        if step.kind == "root":
            raise ArgumentError(
                "the model is another object now, which no average of the former can become",
                where="averages",
                expected="an operation inside the model",
                found=tree.class_name(type(outcome.model)),
                fix="surgery.follow(optimizer, outcome), and AveragedModel(outcome.model) from now",
            )
        if step.kind in ("parameter", "buffer"):
            theirs = counterparts.tensor(step.address)
            before = outcome.old[step.address]
            if theirs.shape != before.shape:
                raise _unlike(step.address, str(list(before.shape)), str(list(theirs.shape)))
            made = parameter_like(theirs, _averaged(theirs, step), None)
            shown = str(Spec(tuple(theirs.shape), theirs.dtype))
            yield replace(step, before=shown, new=made, carried=None, elsewhere=True)
        elif step.kind == "module":
            yield replace(step, new=counterparts.module(step))
        elif step.kind == "values":
            theirs, here = counterparts.tensor(step.address), outcome.new[step.address]
            values = here.detach().to(theirs).clone()
            yield replace(step, new=Content(_giving(values), fresh=True))
        elif step.kind == "attribute" and step.path not in _OF_TRAINING:
            yield replace(step, new=copy.deepcopy(step.new))


def _giving(values: torch.Tensor) -> Any:
    return lambda: values


def _averaged(theirs: torch.Tensor, step: Step) -> torch.Tensor:
    """The model's values, and the averages of entries that live on."""
    given: torch.Tensor = step.new
    made = given.detach().to(device=theirs.device, dtype=theirs.dtype).clone()
    carried = step.carried
    if carried is None or carried.factors is None or theirs.is_meta:
        return made
    for to, found in enumerate(carried.sources):
        if found:
            source = torch.tensor(found, device=theirs.device)
            kept = theirs.detach().index_select(carried.axis, source)
            if carried.factors:
                shape = [1] * kept.dim()
                shape[carried.axis] = -1
                factors = torch.tensor(carried.factors[to], dtype=torch.float64)
                kept = (kept * factors.to(kept).view(shape)).sum(carried.axis)
            else:
                kept = kept.mean(carried.axis) if len(found) > 1 else kept.squeeze(carried.axis)
            made.select(carried.axis, to).copy_(kept)
    return made


class _Counterparts:
    """Of every tensor that an operation moved inside the model, the one of the average."""

    def __init__(self, outcome: Outcome, average: nn.Module) -> None:
        self.outcome = outcome
        self.average = average

    def tensor(self, address: str) -> torch.Tensor:
        """The tensor of the average at an address."""
        try:
            found = tree.get(self.average, address)
        except AddressError as error:
            raise _unlike(address, "a tensor", "nothing") from error
        if not isinstance(found, torch.Tensor):
            raise _unlike(address, "a tensor", type(found).__name__)
        return found

    def module(self, step: Step) -> nn.Module:
        """A copy of a new module, in which what was in the model before is the average's."""
        places = {id(tensor): address for address, tensor in self.outcome.old.items()}
        memo: dict[int, Any] = {}
        for entry in tree.index(step.new).of_kind("parameter", "buffer"):
            address = places.get(id(entry.tensor))
            if address is not None:
                memo[id(entry.tensor)] = self.tensor(address)
        # Copying notes in there what it makes.
        apart = set(map(id, memo.values()))
        made: nn.Module = copy.deepcopy(step.new, memo)
        old = tree.get_module(self.average, step.address)
        like = next(iter((*old.parameters(), *self.average.parameters())), None)
        same = _dtype(self.average) == _dtype(tree.unwrap(self.outcome.model))
        for each in (*made.parameters(), *made.buffers()):
            if id(each) in apart or like is None:
                continue
            as_is = same or not each.is_floating_point()
            each.data = each.data.to(like.device, each.dtype if as_is else like.dtype)
            each.grad = None
            if isinstance(each, nn.Parameter) and each.is_floating_point():
                each.requires_grad_(like.requires_grad)
        return made


def _unlike(where: str, expected: str, found: str) -> ArgumentError:
    return ArgumentError(
        "this average is not of the model that was operated on",
        where=where,
        expected=expected,
        found=found,
        fix="AveragedModel(model) begins another; of an operation on a part of the model the "
        "average is that part, averages=averaged.module.part",
    )
