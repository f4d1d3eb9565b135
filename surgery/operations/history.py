"""Which operations stand on a model, so that they are undone in the right order."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from surgery import tree
from surgery.operations.plan import Step

_serial = itertools.count(1)
# By module, weakly: not on the module, whose attributes and pickles are the user's.
_standing: dict[int, tuple[weakref.ref[nn.Module], list[Entry]]] = {}


@dataclass(frozen=True)
class Entry:
    """One operation that was carried out and not undone."""

    serial: int
    title: str


def register(title: str, modules: Iterable[nn.Module]) -> Entry:
    """Note an operation on every module whose subtree it changed."""
    entry = Entry(next(_serial), title)
    for module in modules:
        _entries(module).append(entry)
    return entry


def later_than(entry: Entry, modules: Iterable[nn.Module]) -> Entry | None:
    """The last operation that was carried out on one of the modules after this one."""
    later = [e for module in modules for e in _entries(module) if e.serial > entry.serial]
    return max(later, key=lambda e: e.serial, default=None)


def strike(entry: Entry, modules: Iterable[nn.Module]) -> None:
    """Forget an operation that was undone."""
    for module in modules:
        entries = _entries(module)
        if entry in entries:
            entries.remove(entry)


def ground(model: nn.Module, steps: tuple[Step, ...]) -> tuple[nn.Module, ...]:
    """Every module on the way from the root to what steps change, the root first."""
    found: dict[int, nn.Module] = {}
    for step in steps:
        for address in (step.module,) if step.kind == "attribute" else step.addresses:
            names = address.split(".") if address else []
            for length in range(len(names) + 1):
                here = tree.get(model, ".".join(names[:length]))
                if isinstance(here, nn.Module):
                    found[id(here)] = here
    return tuple(found.values())


def _entries(module: nn.Module) -> list[Entry]:
    key = id(module)
    known = _standing.get(key)
    if known is None or known[0]() is not module:
        reference = weakref.ref(module, lambda _: _standing.pop(key, None))
        known = _standing[key] = (reference, [])
    return known[1]
