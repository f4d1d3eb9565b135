"""What libraries have put around the parts of a model that a plan changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from surgery import tree
from surgery.errors import WrappedModelError
from surgery.families.registry import Registry, in_force
from surgery.families.wrapping import Wrapping
from surgery.operations.plan import Plan, Step

_Wrapped: TypeAlias = "Mapping[str, tuple[nn.Module, Sequence[Wrapping]]]"

_CHANGING = frozenset({"module", "parameter", "buffer", "values", "left"})


def within_wrappings(model: nn.Module, plan: Plan, registry: Registry | None) -> Plan:
    """Hold a plan against what plugins know of the wrappings in a model.

    Args:
        model: the model that it is for.
        plan: what is to be done.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The plan, with a note for every layer of which there are copies that stay.

    Raises:
        WrappedModelError: a wrapping would undo the change, or not survive it; with the remedy.
    """
    known = in_force(registry)
    changing = [step for step in plan.steps if step.kind in _CHANGING]
    wrapped = _wrapped(model, known) if changing else {}
    if not wrapped:
        return plan
    addresses = [address for step in changing for address in step.addresses]
    for step in changing:
        _check(step.addresses, wrapped, filled=step.kind == "values")
    copies: dict[str, None] = {}
    for address in addresses:
        for place, module, wrapping, _ in _around(address, wrapped):
            every = [tree.join(place, name) for name in wrapping.standing(module)]
            copies.update(dict.fromkeys(_left(every, addresses)))
    return dataclasses.replace(plan, notes=(*plan.notes, *_notes(list(copies), changing)))


def check_wrapped(model: nn.Module, addresses: Iterable[str], registry: Registry | None) -> None:
    """Refuse to change what a wrapping would change back, or could not go on with.

    Args:
        model: any module.
        addresses: of what is to be changed.
        registry: the plugins to ask; those installed, if left out.

    Raises:
        WrappedModelError: with the remedy as code.
    """
    _check(addresses, _wrapped(model, in_force(registry)), filled=False)


def is_kept_elsewhere(model: nn.Module, address: str, registry: Registry) -> bool:
    """Whether a wrapping keeps the values of a parameter, and brings them back while it runs.

    Args:
        model: any module.
        address: of the parameter.
        registry: the plugins to ask.
    """
    return any(
        wrapping.bare is not None
        and wrapping.refuses is not None
        and wrapping.refuses(module, inside, False) != ""
        for _, module, wrapping, inside in _around(address, _wrapped(model, registry))
    )


def _wrapped(model: nn.Module, registry: Registry) -> _Wrapped:
    """Every module of a model that is wrapped, and in what."""
    if not registry.wrappings:
        return {}
    found = {}
    for place, module in tree.walk(model):
        around = [wrapping for wrapping in registry.wrappings if wrapping.is_on(module)]
        if around:
            found[place] = (module, around)
    return found


def _check(addresses: Iterable[str], wrapped: _Wrapped, *, filled: bool) -> None:
    for address in addresses:
        for place, module, wrapping, inside in _around(address, wrapped):
            why = "" if wrapping.refuses is None else wrapping.refuses(module, inside, filled)
            if why:
                raise WrappedModelError(
                    f"{wrapping.name}: {why}",
                    where=address,
                    expected="a layer that is as its own class makes it",
                    found=f"{place or '(the model itself)'}, {tree.class_name(type(module))}",
                    fix=wrapping.remedy.replace("{address}", place),
                )


def _around(address: str, wrapped: _Wrapped) -> Iterator[tuple[str, nn.Module, Wrapping, str]]:
    """Every wrapping around an address: its module, and the address from there."""
    names = address.split(".")
    for length in range(len(names) if wrapped else 0):
        place = ".".join(names[:length])
        module, around = wrapped.get(place, (None, ()))
        if module is not None:
            for wrapping in around:
                yield place, module, wrapping, ".".join(names[length:])


def _left(copies: list[str], changed: list[str]) -> list[str]:
    """The copies that stay, where one of them changes."""
    moved = {copy for copy in copies if any(f"{a}.".startswith(f"{copy}.") for a in changed)}
    return [copy for copy in copies if copy not in moved] if moved else []


def _notes(copies: list[str], changing: list[Step]) -> Iterator[str]:
    if copies and any(step.kind != "values" for step in changing):
        yield (
            f"other copies of a changed layer stay as they are: {', '.join(copies)}; where they "
            f"are to run, surgery.replace(model, {{{copies[0]!r}: module}})"
        )
