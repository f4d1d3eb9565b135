"""Look at a model before and after an operation, and prove that only what was meant changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import PlanError, SurgeryError
from surgery.operations.journal import MISSING, get_entry
from surgery.operations.plan import Check, OutputChange, Plan, Step
from surgery.operations.simulate import outputs_after
from surgery.operations.writes import member

_HOOKS = tuple(name for name in nn.Module().__dict__ if "hooks" in name)


@dataclass(frozen=True, eq=False)
class TensorState:
    """Which tensor it is, and everything about it that must stay."""

    tensor: torch.Tensor
    pointer: int
    version: int
    placement: tuple[Any, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ModelState:
    """Everything about a model that an operation could disturb, by identity."""

    tensors: Mapping[str, TensorState]
    modules: Mapping[str, tuple[nn.Module, bool, tuple[Any, ...]]]
    parameters: int
    index: tree.Index

    @classmethod
    def of(cls, model: nn.Module) -> ModelState:
        """Look at a model. Nothing is copied."""
        index = tree.index(model)
        tensors = {}
        for entry in index.tensors.values():
            state = _state(entry)
            tensors.update(dict.fromkeys(entry.addresses, state))
        modules = {
            address: (module, module.training, _hooks(module))
            for module, addresses in index.modules.values()
            for address in addresses
        }
        count = sum(entry.tensor.numel() for entry in index.of_kind("parameter"))
        return cls(tensors, modules, count, index)


def _state(entry: tree.Entry) -> TensorState:
    tensor = entry.tensor
    strided = tensor.layout == torch.strided and not tensor.is_meta
    pointer = tensor.data_ptr() if strided and type(tensor) in _PLAIN else 0
    # Inference tensors keep no version.
    version = -1 if tensor.is_inference() else tensor._version
    placement = (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
    return TensorState(tensor, pointer, version, placement, entry.addresses)


_PLAIN = (torch.Tensor, nn.Parameter)


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    found: list[Any] = []
    for name in _HOOKS:
        table = module.__dict__.get(name)
        if table:
            found.append((name, id(table), tuple(table.items())))
    return tuple(found)


def verify(model: nn.Module, plan: Plan, before: ModelState) -> tuple[Check, ...]:
    """Check an operation that was just carried out.

    Args:
        model: the model as it is now (the new root where that was replaced).
        plan: what was planned.
        before: the state before.

    Returns:
        Every check with what it showed, failed ones included.
    """
    after = ModelState.of(model)
    touched, here = _Touched(plan.steps), after
    former = before.modules[""][0]
    if former is not model and after.index.addresses(former):
        # It lives on inside the new root, where nothing of it was to change.
        inside = tuple(step for step in plan.steps if step.kind != "root")
        touched, here = _Touched(inside), ModelState.of(former)
    looked = (
        _check_installed(model, plan, after),
        _check_tensors(before, here, touched),
        _check_ties(before, here, touched),
        _check_count(plan, after),
        _check_placement(before, here, touched),
        _check_modules(before, here, touched),
    )
    return (_check_outputs(model, plan), *looked)


class _Touched:
    """The addresses a plan may change."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.modules = {a for s in steps if s.kind in ("module", "root") for a in s.addresses}
        self.tensors = {a for s in steps if s.kind in ("parameter", "buffer") for a in s.addresses}
        self.values = {a for s in steps if s.kind == "values" for a in s.addresses}
        self.left = {a for s in steps if s.kind == "left" for a in s.addresses}
        self.tensors |= self.left
        self.elsewhere = {a for s in steps if s.elsewhere for a in s.addresses}
        self.flags = {a for s in steps if s.kind == "flag" for a in s.addresses}
        # Attributes of a module may be plain tensors; they are planned as attributes.
        self.tensors |= {a for s in steps if s.kind == "attribute" for a in s.addresses}

    def module(self, address: str) -> bool:
        return any(root in ("", address) or address.startswith(f"{root}.") for root in self.modules)

    def mode(self, address: str) -> bool:
        return tree.join(address, "training") in self.tensors

    def tensor(self, address: str) -> bool:
        return address in self.tensors or self.module(address)


def _check_installed(model: nn.Module, plan: Plan, after: ModelState) -> Check:
    """Whether everything is where it was planned: a user's ``__setattr__`` may do otherwise."""
    wrong = [
        address or "the model"
        for step in plan.steps
        for address in step.addresses
        if not _is_set(model, step, address, after)
    ]
    sentences = [f"{address} is not what was to be there" for address in wrong]
    return _result("planned changes", sentences, f"all {len(plan.steps)} are in place")


def _is_set(model: nn.Module, step: Step, address: str, after: ModelState) -> bool:
    if step.kind == "root":
        return model is tree.unwrap(step.new)
    if step.kind == "module":
        found = after.modules.get(address)
        return found is not None and found[0] is tree.unwrap(step.new)
    if step.kind == "attribute":
        return _fact_is_set(model, step)
    state = after.tensors.get(address)
    if state is None:
        return False
    if step.kind == "flag":
        return state.tensor.requires_grad is step.new
    # That it is the tensor that was there is for the check of untouched tensors to say.
    return step.kind == "values" or state.tensor is step.new


def _fact_is_set(model: nn.Module, step: Step) -> bool:
    *parents, name = step.path.split(".")
    try:
        owner: Any = tree.get_module(model, step.module)
        for parent in parents:
            owner = member(owner, parent)
        if step.new is MISSING:
            return get_entry(owner, name) is MISSING
        here = member(owner, name)
    except (SurgeryError, AttributeError, KeyError):
        return False
    return here is step.new or (type(here) is type(step.new) and bool(here == step.new))


def _check_outputs(model: nn.Module, plan: Plan) -> Check:
    name = "outputs"
    if not plan.outputs or plan.example is None:
        return Check(name, True, "no output can change, so none was recorded")
    try:
        found = outputs_after(model, (), plan.example, plan.modes)
    except PlanError as error:
        return Check(name, False, error.what)
    wrong = list(_wrong_outputs(plan.outputs, found))
    if wrong:
        return Check(name, False, "; ".join(wrong))
    classes = sum(bool(change.class_axes) for change in plan.outputs)
    moved = f"the class axis of {classes} is as asked, " if classes else ""
    modes = " and ".join(plan.modes)
    tried = ", ".join(str(size) for size in sorted(set(plan.probes.values())))
    found_with = f" (axes found by trying {tried} classes)" if tried else ""
    return Check(
        name,
        True,
        f"{len(plan.outputs)} outputs in {modes}: {moved}no other shape moved{found_with}",
    )


def _wrong_outputs(
    changes: tuple[OutputChange, ...], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    expected = {(change.mode, change.path): change.after for change in changes}
    for mode, leaves in found.items():
        for path, leaf in leaves.items():
            wanted = expected.pop((mode, path), None)
            if wanted is None:
                yield f"{path} ({mode}) was not there before"
            elif leaf.spec != wanted:
                yield f"{path} ({mode}) is {leaf.spec}, expected {wanted}"
    for mode, path in expected:
        yield f"{path} ({mode}) is gone"


def _check_tensors(before: ModelState, after: ModelState, touched: _Touched) -> Check:
    wrong = []
    kept = 0
    for address, state in before.tensors.items():
        if touched.tensor(address):
            continue
        now = after.tensors.get(address)
        written = address in touched.values
        kept += not written
        if now is None:
            wrong.append(f"{address} is gone")
        elif now.tensor is not state.tensor:
            wrong.append(f"{address} is another tensor")
        elif not written and (now.pointer, now.version) != (state.pointer, state.version):
            wrong.append(f"{address} was written to")
    wrong += [
        f"{address} is new"
        for address in after.tensors
        if address not in before.tensors and not touched.tensor(address)
    ]
    return _result("untouched tensors", wrong, f"{kept} are the same objects, unwritten")


def _check_ties(before: ModelState, after: ModelState, touched: _Touched) -> Check:
    wrong = []
    ties = 0
    for state in {id(s): s for s in before.tensors.values()}.values():
        kept = [address for address in state.addresses if not touched.tensor(address)]
        ties += len(kept) > 1
        now = {id(after.tensors[address].tensor) for address in kept if address in after.tensors}
        if len(now) > 1:
            wrong.append(f"{' = '.join(kept)} are no longer one tensor")
    return _result("ties", wrong, f"{ties} shared tensors are still shared")


def _check_count(plan: Plan, after: ModelState) -> Check:
    before, planned = plan.parameters
    finding = f"{before:,} -> {after.parameters:,} ({after.parameters - before:+,})"
    if after.parameters != planned:
        return Check("parameter count", False, f"{finding}, planned {planned:,}")
    return Check("parameter count", True, f"{finding}, as planned")


def _check_placement(before: ModelState, after: ModelState, touched: _Touched) -> Check:
    wrong = []
    for address, state in before.tensors.items():
        now = after.tensors.get(address)
        if now is None or touched.module(address) or address in touched.left:
            continue
        old, new = state.placement, now.placement
        if not touched.tensor(address) and old[0] != new[0]:
            wrong.append(f"{address} has shape {tuple(new[0])} instead of {tuple(old[0])}")
        if old[1:3] != new[1:3] and address not in touched.elsewhere:
            wrong.append(f"{address} is {new[1]} on {new[2]} instead of {old[1]} on {old[2]}")
        if not touched.tensor(address) and address not in touched.flags and old[3] != new[3]:
            wrong.append(f"{address}.requires_grad moved")
    return _result("device and dtype", wrong, "as they were, and requires_grad too")


def _check_modules(before: ModelState, after: ModelState, touched: _Touched) -> Check:
    wrong = []
    moded = {id(m) for address, (m, *_) in before.modules.items() if touched.mode(address)}
    for address, (module, training, hooks) in before.modules.items():
        now = after.modules.get(address)
        if touched.module(address):
            if address in touched.modules and now is not None and now[1] is not training:
                wrong.append(f"{address or 'the model'} changed between train and eval mode")
            continue
        if now is None or now[0] is not module:
            wrong.append(f"{address or 'the model'} is another module")
        elif now[1] is not training and id(module) not in moded:
            wrong.append(f"{address or 'the model'} changed between train and eval mode")
        elif now[2] != hooks:
            wrong.append(f"the hooks of {address or 'the model'} changed")
    return _result("modules", wrong, "the same objects, modes and hooks")


def _result(name: str, wrong: list[str], right: str) -> Check:
    if not wrong:
        return Check(name, True, right)
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Check(name, False, "; ".join(wrong[:3]) + more)
