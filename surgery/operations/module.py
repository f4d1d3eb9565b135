"""Replace any modules, verified like a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError, RecordError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.graph.record import record_graph
from surgery.graph.skeleton import is_floating
from surgery.operations.apply import operate
from surgery.operations.calls import called
from surgery.operations.carry import check_carry, users_hooks
from surgery.operations.plan import Outcome, OutputChange, Plan, Step
from surgery.operations.simulate import MODES, Leaves, outputs_after
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

    def planned() -> Plan:
        inner = tree.unwrap(model)
        resolved = resolve_example(model, example, registry=registry)
        steps = tuple(_step(inner, address, new) for address, new in modules.items())
        _check_shared(inner, steps)
        return _plan(model, steps, resolved, list(modules))

    return operate(model, planned, dry_run=dry_run, registry=registry)


def _check_arguments(model: nn.Module, modules: object) -> None:
    example = "surgery.replace(model, {'fc': torch.nn.Linear(512, 7)})"
    if not isinstance(modules, Mapping) or not modules:
        raise ArgumentError(
            "replace takes the new modules by address",
            where="modules",
            expected="{address: module}",
            found=repr(modules),
            fix=example,
        )
    seen: dict[int, str] = {}
    for address, new in modules.items():
        if not isinstance(new, nn.Module) or not isinstance(address, str):
            raise ArgumentError(
                "a module is replaced by a module",
                where=f"modules[{address!r}]",
                expected="an address and a torch.nn.Module",
                found=type(new).__name__,
                fix=example,
            )
        tree.check_model(new)
        tree.check_changeable(model, address)
        old = tree.get_module(model, address)
        _check_apart(model, modules, address, old)
        twice = seen.setdefault(id(old), address)
        if twice != address:
            raise ArgumentError(
                "these are two addresses of one module, which is replaced at both of them",
                where=f"{twice}, {address}",
                expected="one of its addresses",
                found="two",
                fix=f"leave {address!r} out",
            )


def _check_apart(
    model: nn.Module, modules: Mapping[str, nn.Module], address: str, old: nn.Module
) -> None:
    """Refuse one address inside another, and a new module that the model sits in."""
    outer = [o for o in modules if o != address and (not o or address.startswith(f"{o}."))]
    if outer:
        raise ArgumentError(
            "one address lies inside another, so it would be replaced twice",
            where=address,
            expected="addresses apart from each other",
            found=f"{address!r} inside {outer[0]!r}",
            fix=f"leave {address!r} out",
        )
    owner = tree.get_module(model, tree.split(address)[0])
    if address and tree.index(modules[address]).addresses(owner):
        raise ArgumentError(
            "the new module contains the one that it is put into, so it would contain itself",
            where=address,
            expected=f"a module apart from {tree.split(address)[0] or 'the model'}",
            found=type(modules[address]).__name__,
            fix=f"torch.nn.Sequential(tree.get(model, {address!r}), more) wraps a layer alone",
        )


def _step(model: nn.Module, address: str, new: nn.Module) -> Step:
    old = tree.get_module(model, address)
    addresses = tree.index(model).addresses(old)
    _check_placement(model, old, new, address)
    kind = "root" if address == "" else "module"
    check_carry(old, new, address)
    return Step(kind, addresses, type(old).__name__, type(new).__name__, new)  # type: ignore[arg-type]


def _check_shared(model: nn.Module, steps: tuple[Step, ...]) -> None:
    """Refuse a new module in several places at once that want different things of it.

    Raises:
        PlanError: it takes over the hooks of several modules, or the mode of one while it (or a
            part of it) also serves where the other mode is on.
    """
    replaced = [address for step in steps for address in step.addresses]
    index = tree.index(model)
    modes: dict[int, tuple[bool, str]] = {
        id(module): (module.training, address)
        for module, addresses in index.modules.values()
        for address in addresses
        if not any(r in ("", address) or address.startswith(f"{r}.") for r in replaced)
    }
    hooked: dict[int, str] = {}
    for step in steps:
        old = tree.get_module(model, step.address)
        if users_hooks(old) and hooked.setdefault(id(step.new), step.address) != step.address:
            raise _torn(step, "hooks", hooked[id(step.new)])
        for module, _ in tree.index(step.new).modules.values():
            mode, address = modes.setdefault(id(module), (old.training, step.address))
            if mode is not old.training:
                raise _torn(step, "train or eval mode", address)


def _torn(step: Step, what: str, other: str) -> PlanError:
    return PlanError(
        f"the new module, or a part of it, is to have two different sets of {what}"
        if what == "hooks"
        else "the new module, or a part of it, is to be in train and in eval mode at once",
        where=step.address,
        expected=f"the {what} of one place",
        found=f"those of {step.address!r} and of {other!r}",
        fix="copy.deepcopy(module) for one of them",
    )


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


def _plan(model: nn.Module, steps: tuple[Step, ...], example: Example, given: list[str]) -> Plan:
    inner = tree.unwrap(model)
    before, notes = _outputs_before(inner, example)
    after = outputs_after(inner, steps, example, before)
    outputs = [
        OutputChange(mode, path, was.spec if (was := before[mode].get(path)) else None, leaf.spec)
        for mode, leaves in after.items()
        for path, leaf in leaves.items()
    ]
    notes += [
        f"{address or 'the model'} was inside {type(wrapper).__name__}, and the new module is not"
        for address in given
        if (wrapper := _wrapper(model, address)) is not None
    ]
    return Plan(
        f"replace({', '.join(map(repr, given))})",
        steps,
        tuple(outputs),
        growth(inner, steps),
        notes=tuple(notes),
        example=example,
        call=called("replace", modules={step.address: step.after for step in steps}),
    )


def _outputs_before(model: nn.Module, example: Example) -> tuple[dict[str, Leaves], list[str]]:
    """The outputs in each mode that can be recorded: without one, nobody can say what changed."""
    found: dict[str, Leaves] = {}
    errors: dict[str, RecordError] = {}
    for mode, train in MODES.items():
        try:
            graph = record_graph(model, example, train=train, operations=False)
        except RecordError as error:
            errors[mode] = error
        else:
            found[mode] = {leaf.path: leaf for leaf in graph.leaves}
    if not found:
        raise errors["eval"]
    return found, [f"{mode} mode was not seen: {error.what}" for mode, error in errors.items()]


def _wrapper(model: nn.Module, address: str) -> nn.Module | None:
    """What wraps the module at an address (``torch.compile``), and goes with it."""
    if not address:
        return model if tree.wrapper_of(model) is not None else None
    owner, name = tree.split(address)
    child = tree.get_module(model, owner)._modules.get(name)
    return child if child is not None and tree.wrapper_of(child) is not None else None
