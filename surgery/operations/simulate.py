"""Try steps on a skeleton of the model: what comes out, without touching anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import PlanError, RecordError
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Leaf
from surgery.graph.quiet import quiet
from surgery.graph.record import record_graph
from surgery.graph.skeleton import Skeleton, build_skeleton, is_floating
from surgery.operations.carry import carry_writes
from surgery.operations.journal import Journal
from surgery.operations.plan import Step
from surgery.operations.writes import makers
from surgery.wrappers import mixin_of

Leaves = Mapping[str, Leaf]
MODES = {"eval": False, "train": True}


def outputs_after(
    model: nn.Module, steps: tuple[Step, ...], example: Example, modes: Iterable[str]
) -> dict[str, Leaves]:
    """Run a model with steps applied, on stand-ins, and say what comes out in each mode.

    Args:
        model: the model, which stays as it is.
        steps: what to try. Empty: the model as it is.
        example: the arguments of forward.
        modes: ``eval`` and ``train``, or one of them.

    Returns:
        For each mode the outputs by path.

    Raises:
        PlanError: the changed model does not run.
    """
    root = next((step.new for step in steps if step.kind == "root"), None)
    subject = model if root is None else root

    def edit(skeleton: Skeleton) -> None:
        if root is None:
            _perform(model, skeleton, steps)
        else:
            # The hooks of the old root pass to the new one; the mode is that of the recording.
            writes = carry_writes(tree.unwrap(model), skeleton.model)
            Journal().perform([lambda: [each for each in writes if each.name != "training"]])

    found: dict[str, Leaves] = {}
    for mode in modes:
        try:
            graph = record_graph(
                subject,
                example,
                train=MODES[mode],
                edit=edit if steps else None,
                operations=False,
            )
        except RecordError as error:
            changed = ", ".join(step.address or "the model itself" for step in steps[:4])
            raise PlanError(
                f"with the change the model no longer runs in {mode} mode: {_reason(error)}",
                where=changed,
                expected="a forward pass that runs; something in it depends on the old sizes",
                found=f"{type(error.__cause__).__name__} in {tree.class_name(type(model))}.forward",
                fix="surgery.replace(model, {address: module}) for every layer that depends on it",
            ) from error
        found[mode] = {leaf.path: leaf for leaf in graph.leaves}
    return found


def rehearse(model: nn.Module, steps: tuple[Step, ...]) -> nn.Module | None:
    """Carry out the writes of a plan on a skeleton: what a user's own setters refuse shows here.

    Args:
        model: the model, which stays as it is.
        steps: what is going to be done.

    Returns:
        What the model will be, on stand-ins; None where only values change.

    Raises:
        PlanError: something cannot be set.
        WrappedModelError: something lies inside DataParallel, DistributedDataParallel or FSDP.
    """
    if _may_forbid(model):
        touched = [step.module if step.kind == "attribute" else step.address for step in steps]
        for address in dict.fromkeys(touched):
            tree.check_changeable(model, address)
    # Values reach no setter, and a model has many tensors to fill.
    steps = tuple(step for step in steps if step.kind != "values")
    if not steps:
        return None
    with quiet():
        skeleton = build_skeleton(model)
        for step in steps:
            if step.kind == "flag":
                _check_flag(model, step)
        _perform(model, skeleton, steps)
    return next((step.new for step in steps if step.kind == "root"), skeleton.model)


def _may_forbid(model: nn.Module) -> bool:
    """Whether a wrapper stands anywhere in a model; its class alone tells."""
    one_of_each = {type(module): module for module in model.modules()}.values()
    return any(
        tree.wrapper_of(module) is not None or mixin_of(module) is not None
        for module in one_of_each
    )


def _perform(model: nn.Module, skeleton: Skeleton, steps: tuple[Step, ...]) -> None:
    """Carry out steps on a skeleton; what refuses to be set is named."""
    writes = makers(skeleton.model, steps, _stand_in(skeleton))
    for step, maker in zip(steps, writes, strict=True):
        try:
            Journal().perform([maker])
        except Exception as error:
            raise PlanError(
                f"this cannot be set: {type(error).__name__}: {error}",
                where=step.address or "(the model itself)",
                expected=f"{step.before} -> {step.after}",
                found=tree.class_name(type(tree.get_module(model, step.module))),
                fix="change the class so that it can be set, or leave this part out",
            ) from error


def _check_flag(model: nn.Module, step: Step) -> None:
    """Refuse a flag of an inference tensor, which torch lets nobody turn on (again)."""
    tensor = tree.get(model, step.address)
    if isinstance(tensor, torch.Tensor) and tensor.is_inference():
        raise PlanError(
            "a tensor made in inference mode never trains, and its flag stays as it is",
            where=step.address,
            expected="a parameter made outside torch.inference_mode",
            found="an inference tensor",
            fix="build the model outside torch.inference_mode, or copy.deepcopy it there",
        )


def _reason(error: RecordError) -> str:
    text = str(error.__cause__ or error.what).strip()
    return text.splitlines()[0] if text else error.what


def _stand_in(skeleton: Skeleton) -> Any:
    """What installs on a skeleton: meta where it is on meta, and never the caller's own tensor."""
    meta = skeleton.backend == "meta"

    def transform(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return build_skeleton(value, skeleton.backend).model
        if isinstance(value, torch.Tensor):
            return _tensor(value, meta)
        return value

    return transform


def _tensor(value: torch.Tensor, meta: bool) -> torch.Tensor:
    if meta and is_floating(value.dtype):
        new = torch.empty_like(value, device="meta")
    elif not meta and value.is_meta:
        new = torch.zeros(value.shape, dtype=value.dtype)
    else:
        new = value.detach().clone()
    if isinstance(value, nn.Parameter):
        return nn.Parameter(new, requires_grad=value.requires_grad)
    return new


class ProbeSizes:
    """Sizes that equal no dimension in the recordings, nor a number of classes asked for.

    Args:
        graphs: the recordings.
        taken: other numbers to stay away from.
    """

    def __init__(self, graphs: Iterable[Graph], taken: Iterable[int]) -> None:
        self.used = set(taken)
        for graph in graphs:
            for node in graph.nodes:
                for spec in node.outputs:
                    self.used.update(spec.shape)

    def next(self, multiple: int = 1) -> int:
        """A size that was not given out yet: a prime, times what it must be a multiple of."""
        size = next(
            number * multiple
            for number in itertools.count(11, 2)
            if number * multiple not in self.used
            and all(number % divisor for divisor in range(3, number, 2))
        )
        self.used.add(size)
        return size
