"""What is special about parts of a model: heads, what an operation put there, what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from surgery import tree
from surgery.findings import Head
from surgery.operations.plan import Outcome, Step, tensors_of

# In the order in which they are written on a block.
HEAD, NEW, TRANSPLANTED, LOADED = "head", "new", "transplanted", "loaded"
FROZEN, PARTLY, SHARED = "frozen", "partly frozen", "shared"


@dataclass(frozen=True)
class Marking:
    """What is known of the tensors and modules of a model besides its graph.

    Attributes:
        heads: addresses of the modules and tensors of heads.
        arrived: by mark, the addresses of tensors that operations put there or gave values.
        frozen: addresses of the parameters that do not train.
        classes: the name of the class of every module, by address.
    """

    heads: frozenset[str] = frozenset()
    arrived: Mapping[str, frozenset[str]] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    classes: Mapping[str, str] = field(default_factory=dict)

    def marks(self, parameters: Sequence[tuple[str, ...]], address: str) -> tuple[str, ...]:
        """The marks of a block that consumes these parameters in the module at this address."""
        every = {each for addresses in parameters for each in addresses}
        found = [HEAD] if any(_lies_in(each, self.heads) for each in (*every, address)) else []
        found += [mark for mark, addresses in self.arrived.items() if every & addresses]
        still = sum(addresses[0] in self.frozen for addresses in parameters)
        if still:
            found.append(FROZEN if still == len(parameters) else PARTLY)
        inside = f"{address}." if address else ""
        if any(
            len([each for each in found if not each.startswith(inside)]) for found in parameters
        ):
            found.append(SHARED)
        return tuple(found)


def _lies_in(address: str, places: frozenset[str]) -> bool:
    if "" in places:
        return True
    parts = address.split(".")
    return any(".".join(parts[:length]) in places for length in range(1, len(parts) + 1))


def marking(model: nn.Module | None, heads: Iterable[Head], outcomes: Iterable[Outcome]) -> Marking:
    """Collect what is known of a model.

    Args:
        model: the model, or None where there is only its graph.
        heads: those to mark.
        outcomes: the operations to mark, whose addresses are the model's.
    """
    places = {
        address
        for head in heads
        for address in (*head.addresses, *(each for found in head.weights for each in found))
    }
    arrived: dict[str, set[str]] = {}
    for outcome in outcomes:
        for step in outcome.plan.steps:
            mark = _mark(outcome.plan.title, step)
            if mark:
                arrived.setdefault(mark, set()).update(_tensors(step))
    order = [mark for mark in (NEW, TRANSPLANTED, LOADED) if mark in arrived]
    known = {mark: frozenset(arrived[mark]) for mark in order}
    if model is None:
        return Marking(frozenset(places), known)
    frozen = {
        address
        for entry in tree.index(model).of_kind("parameter")
        if not entry.tensor.requires_grad
        for address in entry.addresses
    }
    classes = {address: type(module).__name__ for address, module in tree.walk(model)}
    return Marking(frozenset(places), known, frozenset(frozen), classes)


def _mark(title: str, step: Step) -> str:
    if step.kind in ("module", "root"):
        return NEW
    if step.kind not in ("parameter", "buffer", "values"):
        return ""
    verb = title.partition("(")[0]
    return {"transplant": TRANSPLANTED, "load_weights": LOADED}.get(verb, NEW)


def _tensors(step: Step) -> Iterable[str]:
    return step.addresses if step.kind == "values" else tensors_of((step,))
