"""Replace any modules, verified like a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.graph.record import record_graph
from surgery.graph.skeleton import is_floating
from surgery.operations.apply import apply
from surgery.operations.carry import check_carry
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.simulate import MODES, outputs_after
from surgery.operations.size import growth
from surgery.recording import resolve_example


def replace(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    *,
    example: Any = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Put other modules in the place of some, at every address of each, and verify the result.

    The new module takes over the train or eval mode of the old one and its hooks. Shapes of
    outputs may change: the plan says how, and nothing else may.

    Args:
        model: any module; it is changed in place.
        modules: for each address the module to put there. The address ``""`` is the model
            itself: then ``outcome.model`` is the new one.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask for an example; those installed, if left out.

    Returns:
        The outcome: the model, what changed, every check, and ``undo()``.

    Raises:
        ArgumentError: nothing to replace, one address inside another, or no module.
        AddressError: no such address.
        PlanError: the changed model does not run, or the new module is on another device or of
            another dtype. Nothing was touched.
        WrappedModelError: an address is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> outcome = surgery.replace(model, {"1": nn.GELU()}, example=torch.zeros(2, 8))
        >>> type(model[1]).__name__
        'GELU'
    """
    tree.check_model(model)
    _check_arguments(model, modules)
    inner = tree.unwrap(model)
    resolved = resolve_example(model, example, registry=registry)
    steps: list[Step] = []
    for address, new in modules.items():
        tree.check_changeable(model, address)
        steps.append(_step(inner, address, new))
    # Who cannot run the model before cannot say what changed.
    record_graph(inner, resolved, operations=False)
    plan = _plan(inner, tuple(steps), resolved, list(modules))
    return Outcome(model, plan) if dry_run else apply(model, plan)


def _check_arguments(model: nn.Module, modules: object) -> None:
    if not isinstance(modules, Mapping) or not modules:
        raise ArgumentError(
            "replace takes the new modules by address",
            where="modules",
            expected="{address: module}",
            found=repr(modules),
            fix="surgery.replace(model, {'fc': torch.nn.Linear(512, 7)})",
        )
    for address, new in modules.items():
        if not isinstance(new, nn.Module) or not isinstance(address, str):
            raise ArgumentError(
                "a module is replaced by a module",
                where=f"modules[{address!r}]",
                expected="an address and a torch.nn.Module",
                found=type(new).__name__,
                fix="surgery.replace(model, {'fc': torch.nn.Linear(512, 7)})",
            )
        tree.check_model(new)
        outer = [o for o in modules if o != address and (not o or address.startswith(f"{o}."))]
        if outer:
            raise ArgumentError(
                "one address lies inside another, so it would be replaced twice",
                where=address,
                expected="addresses apart from each other",
                found=f"{address!r} inside {outer[0]!r}",
                fix=f"leave {address!r} out",
            )


def _step(model: nn.Module, address: str, new: nn.Module) -> Step:
    old = tree.get_module(model, address)
    addresses = tree.index(model).addresses(old)
    _check_placement(model, old, new, address)
    kind = "root" if address == "" else "module"
    check_carry(old, new, address)
    return Step(kind, addresses, type(old).__name__, type(new).__name__, new)  # type: ignore[arg-type]


def _check_placement(model: nn.Module, old: nn.Module, new: nn.Module, address: str) -> None:
    theirs = _placement(old) or _placement(model)
    ours = _placement(new)
    if theirs is None or ours is None or theirs == ours:
        return
    raise PlanError(
        "the new module is not where the old one is",
        where=address or "(the model itself)",
        expected=f"{theirs[1]} on {theirs[0]}",
        found=f"{ours[1]} on {ours[0]}",
        fix=f"module.to(device={str(theirs[0])!r}, dtype={theirs[1]})",
    )


def _placement(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    for tensor in (*module.parameters(), *module.buffers()):
        if is_floating(tensor.dtype):
            return tensor.device, tensor.dtype
    return None


def _plan(model: nn.Module, steps: tuple[Step, ...], example: Any, addresses: list[str]) -> Plan:
    before: dict[str, Mapping[str, Any]] = {}
    notes: list[str] = []
    for mode in MODES:
        try:
            before |= outputs_after(model, (), example, (mode,))
        except PlanError as error:
            notes.append(f"{mode} mode was not seen: {error.what}")
    after = outputs_after(model, steps, example, before)
    outputs = [
        OutputChange(mode, path, was.spec if (was := before[mode].get(path)) else None, leaf.spec)
        for mode, leaves in after.items()
        for path, leaf in leaves.items()
    ]
    return Plan(
        f"replace({', '.join(map(repr, addresses))})",
        steps,
        tuple(outputs),
        growth(model, steps),
        notes=tuple(notes),
        example=example,
    )
