"""What has to change in a model so that it becomes the one that a file describes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import CorruptFileError, PlanError
from surgery.graph.skeleton import is_floating
from surgery.operations.journal import MISSING
from surgery.operations.literals import decode
from surgery.operations.norms import StaysInEval, still_of
from surgery.operations.plan import Step
from surgery.operations.portrait import Form, Placed, Portrait, portrait_of
from surgery.operations.record import Record
from surgery.operations.remade import Remaker, classes_known, is_settable
from surgery.weights.brief import brief
from surgery.weights.stored import fills
from surgery.weights.value import Weights

_SHOWN = 8


class Restoring:
    """The way from a model to the one in a file. Making it touches nothing.

    Attributes:
        steps: what changes, the values of tensors that stay aside.
        values: tensors of the model that stay and get values: address in the file to addresses.
        notes: what is left as the target makes it.

    Args:
        model: what the target made, out of its wrappers.
        record: what the file says.
        weights: the file.
        trusted: classes of modules that may be made besides torch's and the model's own.
        waiting: whether the model's tensors on meta are about to get values.
    """

    def __init__(
        self,
        model: nn.Module,
        record: Record,
        weights: Weights,
        trusted: Iterable[type[nn.Module]],
        *,
        waiting: bool,
    ) -> None:
        self.model, self.record, self.weights, self.waiting = model, record, weights, waiting
        self.index = tree.index(model)
        self.then, self.now = record.portrait, portrait_of(model)
        self.there = by_address(self.then)
        self.here = by_address(self.now)
        self.first = {a: first for first, all_ in self.then.tensors.items() for a in all_}
        self.values: dict[str, tuple[str, ...]] = {}
        self.notes: list[str] = []
        self.installed: dict[str, torch.Tensor] = {}
        self._check_whole()
        self.regions = self._regions()
        self.remaker = Remaker(
            self.there, classes_known(model, trusted), self._tensor_at, weights.origin
        )
        self._check_makeable()
        self._exchanged: list[Step] = []
        modules = tuple(self._modules())
        for first in self.then.tensors:
            self._settle(first)
        self.steps = (*modules, *self._exchanged, *self._flags(), *self._attributes())

    def made(self) -> Iterator[tuple[nn.Module, Placed]]:
        """The modules that were made anew."""
        for first, module in self.remaker.made.items():
            yield module, self.there[first]

    def _check_whole(self) -> None:
        """Refuse a record that contradicts itself or the file it is in."""
        unknown = [name for name in self.weights.tensors if name not in self.then.tensors]
        slots = {
            tree.join(address, name)
            for address, placed in self.there.items()
            for names in (placed.form.parameters, placed.form.buffers)
            for name, there in names.items()
            if there
        }
        odd = sorted(slots.symmetric_difference(self.first))
        odd += [address for address in self.record.strides if address not in self.then.tensors]
        if unknown or odd:
            raise CorruptFileError(
                "the record does not describe the tensors of the file",
                where=self.weights.origin,
                expected="every tensor once",
                found=brief(unknown or odd),
                fix="surgery.save(model, path) writes a valid one",
            )

    def _regions(self) -> list[str]:
        """The outermost addresses at which the file has another module than the model."""
        found: list[str] = []
        for address in sorted(self.there, key=lambda a: a.count(".") + bool(a)):
            if _is_inside(address, found):
                continue
            here, placed = self.here.get(address), self.there[address]
            same = here is not None and here.form.parts() == placed.form.parts()
            if not same or set(here.addresses if here else ()) != set(placed.addresses):
                found.append(address)
        return found

    def _check_makeable(self) -> None:
        reasons = [
            f"{_compared(address, self.here.get(address), self.there[address])}; {reason}"
            for address in self.regions
            for reason in self.remaker.reasons(address)
        ]
        reasons += [
            f"{address}: the file has no values for it, and the target makes none"
            for address, first in self.first.items()
            if first not in self.weights.tensors and _is_inside(address, self.regions)
        ]
        if reasons:
            more = len(reasons) - _SHOWN
            shown = [*reasons[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
            raise PlanError(
                "the target makes other parts than the saved model had, and the file cannot make "
                "them: a file keeps no code",
                where=self.regions[0] or "(the model itself)",
                expected="a target that makes these parts, or classes that may be made",
                found="\n".join(shown),
                fix="surgery.restore(factory, path) with a factory that makes them, or "
                "trusted=[MyHead]",
            )

    def _modules(self) -> Iterator[Step]:
        done: set[str] = set()
        for address in self.regions:
            placed = self.there[address]
            if placed.addresses[0] in done:
                continue
            done.add(placed.addresses[0])
            addresses = tuple(a for a in placed.addresses if a in self.regions)
            new = self.remaker.module(address)
            before = tree.get_module(self.model, address)
            kind = "root" if address == "" else "module"
            yield Step(kind, addresses, type(before).__name__, type(new).__name__, new)  # type: ignore[arg-type]

    def _tensor_at(self, address: str) -> torch.Tensor:
        first = self.first[address]
        self._settle(first)
        return self.installed[first]

    def _settle(self, first: str) -> None:
        """Find out which tensor is to be at some addresses; a new one is put there by a step."""
        if first in self.installed:
            return
        addresses = self.then.tensors[first]
        outside = tuple(a for a in addresses if not _is_inside(a, self.regions))
        present = {id(t): t for t in (tree.get(self.model, a) for a in outside)}
        here = next(iter(present.values())) if len(present) == 1 else None
        if isinstance(here, torch.Tensor) and self._stays(here, first, outside):
            self.installed[first] = here
            if first in self.weights.tensors:
                self.values[first] = outside
            return
        if first not in self.weights.tensors:
            raise PlanError(
                "the target shares this tensor otherwise than the saved model did, and the file "
                "has no values for it",
                where=first,
                expected=" = ".join(addresses),
                found=f"{len(present)} tensors",
                fix="surgery.restore(factory, path) with a factory that makes the same",
            )
        new = self.installed[first] = self._new(first, outside)
        kind = "parameter" if self._is_parameter(first) else "buffer"
        before = " and ".join(_form(t) for t in present.values() if isinstance(t, torch.Tensor))
        if outside:
            step = Step(kind, outside, before, _form(new), new, elsewhere=True)  # type: ignore[arg-type]
            self._exchanged.append(step)

    def _stays(self, here: torch.Tensor, first: str, outside: tuple[str, ...]) -> bool:
        """Whether the model's own tensor can take the values of the file's."""
        ours = {a for a in self._slots(here) if not _is_inside(a, self.regions)}
        if ours != set(outside) or isinstance(here, nn.Parameter) is not self._is_parameter(first):
            return False
        info = self.weights.tensors.get(first)
        if info is None:
            return True
        ready = self.waiting or not here.is_meta
        return ready and (tuple(here.shape), here.dtype) == (info.shape, info.dtype)

    def _slots(self, tensor: torch.Tensor) -> tuple[str, ...]:
        entry = self.index.tensors[id(tensor)]
        return self.now.tensors[next(a for a in entry.addresses if a in self.now.tensors)]

    def _is_parameter(self, first: str) -> bool:
        owner, name = tree.split(first)
        return self.there[owner].form.parameters.get(name, False)

    def _new(self, first: str, outside: tuple[str, ...]) -> torch.Tensor:
        value = laid_out(self.weights.read(first), self.record.strides.get(first), first)
        value = value.to(self._device(outside))
        if not self._is_parameter(first):
            return value
        trains = first not in self.then.frozen and is_floating(value.dtype)
        return nn.Parameter(value, requires_grad=trains)

    def _device(self, outside: tuple[str, ...]) -> torch.device:
        """Where a new tensor goes: to the one it replaces, else to the model's others."""
        held = (tree.get(self.model, a) for a in outside)
        tensors = (*(t for t in held if isinstance(t, torch.Tensor)), *self.model.parameters())
        return next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))

    def _flags(self) -> Iterator[Step]:
        for first, addresses in self.then.tensors.items():
            outside = tuple(a for a in addresses if not _is_inside(a, self.regions))
            tensor = self.installed[first]
            trains = first not in self.then.frozen
            known = id(tensor) in self.index.tensors
            if not known or not self._is_parameter(first) or not is_floating(tensor.dtype):
                continue
            if tensor.requires_grad is not trains:
                words = ("frozen", "trainable") if trains else ("trainable", "frozen")
                yield Step("flag", outside, *words, trains)

    def _attributes(self) -> Iterator[Step]:
        for placed in self.then.modules.values():
            address = placed.addresses[0]
            if not _is_inside(address, self.regions):
                yield from self._facts(address, placed.form, self.here[address].form)
                yield from self._still(address, placed, self.here[address])

    def _facts(self, address: str, form: Form, now: Form) -> Iterator[Step]:
        module = tree.get_module(self.model, address)
        for path, fact in form.facts.items():
            if now.facts.get(path, MISSING) == fact or _is_list_of_weights(fact):
                continue
            full = tree.join(address, path)
            if path not in now.facts and not self._is_known(module, path, now):
                self.notes.append(f"{brief(full)} is not set: the target has no such attribute")
                continue
            new = decode(fact, f"{self.weights.origin}: {full}")
            before = brief(decode(now.facts[path], full)) if path in now.facts else "nothing plain"
            yield Step("attribute", (full,), before, brief(new), new, address)
        for name in form.opaque:
            if name in now.facts:
                full = tree.join(address, name)
                self.notes.append(f"{brief(full)} held what no file keeps, and stays as it is made")

    def _is_known(self, module: nn.Module, path: str, now: Form) -> bool:
        """Whether a file may set an attribute that has no plain value yet."""
        name, _, inside = path.partition(".")
        return not inside and is_settable(type(module), name)

    def _still(self, address: str, placed: Placed, now: Placed) -> Iterator[Step]:
        if placed.still is now.still:
            return
        module = tree.get_module(self.model, address)
        held = still_of(module)
        own = MISSING if held is None or held.own is None else held.own
        new, mode = (StaysInEval(module), False) if placed.still else (own, self.model.training)
        words = ("follows the model's mode", "stays in eval mode")
        before, after = words if placed.still else reversed(words)
        yield Step("attribute", (tree.join(address, "train"),), before, after, new, address)
        if module.training is not mode:
            name = tree.join(address, "training")
            yield Step("attribute", (name,), str(not mode), str(mode), mode, address)


def by_address(portrait: Portrait) -> dict[str, Placed]:
    """Every module by every one of its addresses."""
    return {a: placed for placed in portrait.modules.values() for a in placed.addresses}


def laid_out(value: torch.Tensor, stride: tuple[int, ...] | None, address: str) -> torch.Tensor:
    """A tensor with its elements in the order in memory that the file names.

    Raises:
        CorruptFileError: the strides are not those of such a tensor.
    """
    if stride is None:
        return value.contiguous()
    if len(stride) != value.dim() or not fills(tuple(value.shape), stride):
        raise CorruptFileError(
            "the record gives a tensor strides that leave gaps or overlap",
            where=address,
            expected=f"strides of a tensor of shape {tuple(value.shape)}",
            found=brief(stride),
            fix="surgery.save(model, path) writes a valid one",
        )
    new = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device)
    return new.copy_(value)


def differences(record: Record, model: nn.Module, *, modes: bool) -> Iterator[str]:
    """What a model has otherwise than a file says, in words; nothing where it is restored.

    Args:
        record: what the file says.
        model: the model.
        modes: whether train and eval modes count.
    """
    then, now = record.portrait, portrait_of(model)
    here = by_address(now)
    for address, placed in then.modules.items():
        found = here.get(address)
        shown = address or "the model itself"
        if found is None or set(found.addresses) != set(placed.addresses):
            yield f"{shown} is not where it was"
        elif found.form.parts() != placed.form.parts():
            yield _compared(address, found, placed)
        elif found.still is not placed.still:
            yield f"{shown} {'stays' if found.still else 'does not stay'} in eval mode"
        elif modes and found.training is not placed.training:
            yield f"{shown} is in another mode"
        else:
            facts = found.form.facts
            wrong = [n for n, f in placed.form.facts.items() if n in facts and facts[n] != f]
            yield from (f"{tree.join(address, name)} differs" for name in wrong)
    ties = ({frozenset(group) for group in each.tensors.values()} for each in (then, now))
    yield from (
        f"{' = '.join(sorted(group))} is tied otherwise" for group in next(ties) ^ next(ties)
    )
    flags = _thawed(then) ^ _thawed(now)
    yield from (f"{address} trains otherwise" for address in sorted(flags))


def _thawed(portrait: Portrait) -> set[str]:
    frozen = portrait.frozen
    return {a for first, all_ in portrait.tensors.items() if first in frozen for a in all_}


def _is_inside(address: str, regions: Iterable[str]) -> bool:
    return any(r in ("", address) or address.startswith(f"{r}.") for r in regions)


def _is_list_of_weights(fact: Any) -> bool:
    return isinstance(fact, dict) and set(fact) == {"own"}


def _compared(address: str, here: Placed | None, there: Placed) -> str:
    """What the target has at an address, and what the file has."""
    shown = address or "the model itself"
    if here is None:
        return f"{shown}: nothing in the target, {there.form.kind} in the file"
    if here.form.kind != there.form.kind:
        return f"{shown}: {here.form.kind} in the target, {brief(there.form.kind)} in the file"
    slots = zip(("parameters", "buffers", "modules"), range(1, 4), strict=True)
    for _, place in slots:
        ours: Any = here.form.parts()[place]
        theirs: Any = there.form.parts()[place]
        if ours != theirs:
            names = [f"the target lacks {brief(sorted(theirs - ours))}"] if theirs - ours else []
            names += [f"the file lacks {brief(sorted(ours - theirs))}"] if ours - theirs else []
            return f"{shown}: {' and '.join(names)}"
    return f"{shown}: shared, or computed, otherwise in the target than in the file"


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
