"""Make modules from what a file says of them, without running a constructor.

As unpickling would: an empty object of the class, then its attributes, parts and tensors. Only
classes that are known already are looked up, and nothing is imported, so that a file decides on
values and never on code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import linear

from surgery import tree
from surgery.errors import ArgumentError, CorruptFileError
from surgery.operations.attached import Headed, Pooled
from surgery.operations.literals import decode
from surgery.operations.norms import StaysInEval
from surgery.operations.portrait import MODULE_STATE, Form, Placed
from surgery.weights.brief import brief


def classes_known(
    model: nn.Module, trusted: Iterable[type[nn.Module]]
) -> dict[str, type[nn.Module]]:
    """The classes of which modules may be made.

    They are torch's layers, those of attached heads, the model's own and the caller's.

    Args:
        model: the model that is being restored.
        trusted: further classes.

    Raises:
        ArgumentError: one is no class of modules.

    Example:
        >>> "torch.nn.modules.linear.Linear" in classes_known(nn.ReLU(), [])
        True
    """
    found = {
        tree.class_name(cls): cls
        for cls in (*vars(nn).values(), *vars(linear).values())
        if isinstance(cls, type) and issubclass(cls, nn.Module) and "lazy" not in cls.__module__
    }
    found |= {tree.class_name(cls): cls for cls in (Headed, Pooled)}
    found |= {tree.class_name(type(module)): type(module) for module in model.modules()}
    given: list[Any] = [trusted] if isinstance(trusted, type) else list(trusted)
    for cls in given:
        if not isinstance(cls, type) or not issubclass(cls, nn.Module):
            raise ArgumentError(
                "only classes of modules can be trusted to be made",
                where="trusted",
                expected="classes of torch.nn.Module",
                found=brief(cls),
                fix="surgery.restore(target, path, trusted=[MyHead])",
            )
        found[tree.class_name(cls)] = cls
    return found


class Remaker:
    """Makes the modules of a record, each once, also where several addresses lead to it.

    Args:
        placed: every module of the record, by every address.
        classes: those that may be made, by qualified name.
        tensor: gives the tensor for an address.
        where: the file, for errors.
    """

    def __init__(
        self,
        placed: Mapping[str, Placed],
        classes: Mapping[str, type[nn.Module]],
        tensor: Callable[[str], torch.Tensor],
        where: str,
    ) -> None:
        self.placed = placed
        self.classes = classes
        self.tensor = tensor
        self.where = where
        self.made: dict[str, nn.Module] = {}

    def reasons(self, address: str) -> Iterator[str]:
        """Why the module at an address cannot be made; nothing where it can."""
        seen: set[str] = set()
        pending = [address]
        while pending:
            here = pending.pop()
            placed = self._at(here)
            if placed.addresses[0] in seen:
                continue
            seen.add(placed.addresses[0])
            for reason in self._reasons(placed.form):
                yield f"{here or 'the model itself'}: {reason}"
            pending += [tree.join(here, n) for n, there in placed.form.modules.items() if there]

    def _reasons(self, form: Form) -> Iterator[str]:
        cls = self.classes.get(form.kind)
        if cls is None:
            yield f"it is a {brief(form.kind)}, which this process does not vouch for"
            return
        if form.opaque:
            yield f"{form.kind} holds what no file keeps in {', '.join(map(brief, form.opaque))}"
        if form.hooks or form.modules.get("parametrizations"):
            yield "its weights are computed from others"
        for name in form.facts:
            if not is_settable(cls, name):
                yield f"{brief(name)} is no attribute that a file may set"

    def module(self, address: str) -> nn.Module:
        """The module at an address, with all that is inside it."""
        placed = self._at(address)
        first = placed.addresses[0]
        if first in self.made:
            return self.made[first]
        form, cls = placed.form, self.classes[placed.form.kind]
        module: nn.Module = cls.__new__(cls)
        self.made[first] = module
        state: dict[str, Any] = nn.Module().__dict__
        for slots, names in (("_parameters", form.parameters), ("_buffers", form.buffers)):
            for name, there in names.items():
                state[slots][name] = self.tensor(tree.join(address, name)) if there else None
        state["_modules"] |= {
            name: self.module(tree.join(address, name)) if there else None
            for name, there in form.modules.items()
        }
        state["_non_persistent_buffers_set"] = set(form.passing)
        state["training"] = placed.training
        for name, fact in form.facts.items():
            state[name] = self._value(fact, state)
        module.__setstate__(state)  # type: ignore[no-untyped-call]
        if placed.still:
            module.__dict__["train"] = StaysInEval(module)
        return module

    def _value(self, fact: Any, state: Mapping[str, Any]) -> Any:
        if not isinstance(fact, dict) or set(fact) != {"own"}:
            return decode(fact, self.where)
        own = {**state["_buffers"], **state["_parameters"], None: None}
        try:
            return [own[name] for name in fact["own"]]
        except (KeyError, TypeError) as error:
            raise self._broken("a list of weights names one that is not there", fact) from error

    def _at(self, address: str) -> Placed:
        placed = self.placed.get(address)
        if placed is None:
            raise self._broken("a module of the record is not described in it", address)
        return placed

    def _broken(self, what: str, found: object) -> CorruptFileError:
        return CorruptFileError(
            what,
            where=self.where,
            expected="a record that is whole",
            found=brief(found),
            fix="surgery.save(model, path) writes a valid one",
        )


def is_settable(cls: type, name: str) -> bool:
    """Whether a name is that of a plain attribute, and hides nothing that the class does."""
    return (
        name.isidentifier()
        and not name.startswith("__")
        and name not in MODULE_STATE
        and not callable(getattr(cls, name, None))
    )
