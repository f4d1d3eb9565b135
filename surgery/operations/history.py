"""Which operations stand on a model, so that they are undone in the right order."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgery import tree

_serial = itertools.count(1)
# Not on the modules, whose attributes and pickles are the user's.
_standing: list[Entry] = []


@dataclass(frozen=True, eq=False)
class Entry:
    """One operation that was carried out and not undone.

    Attributes:
        title: the operation, for people.
        root: the model it was called on.
        ground: the modules on the way to what it changed, and those it put there.
        keeper: what could undo it; an entry whose keeper is gone only stands in the way of others.
        serial: its place in the order.
    """

    title: str
    root: weakref.ref[nn.Module]
    ground: tuple[weakref.ref[nn.Module], ...]
    keeper: weakref.ref[Any]
    serial: int = field(default_factory=lambda: next(_serial))

    def modules(self) -> Iterator[nn.Module]:
        """Those of its modules that still exist."""
        found = (reference() for reference in (self.root, *self.ground))
        return (module for module in found if module is not None)

    def undoable(self) -> bool:
        """Whether somebody can still undo it."""
        keeper = self.keeper()
        return keeper is not None and not keeper.over


def entry(title: str, root: nn.Module, ground: Iterable[nn.Module], keeper: Any) -> Entry:
    """Make an entry for an operation that is under way."""
    places = tuple(weakref.ref(module) for module in ground)
    return Entry(title, weakref.ref(root), places, weakref.ref(keeper))


def standing() -> list[Entry]:
    """The operations that stand, in order: the list itself, less what is in nobody's way."""
    # The first ones matter only as long as they can still be undone.
    while _standing and not _standing[0].undoable():
        del _standing[0]
    return _standing


def later_than(entry: Entry) -> Entry | None:
    """The last operation after this one that concerns the same part of a model.

    That is one called on the model or a part of it, one called on a model that it is a part of,
    and one that changed something that both have.
    """
    own: set[int] = set()
    for module in entry.modules():
        if id(module) not in own:
            own |= _inside(module)
    root = entry.root()
    for other in reversed(standing()):
        if other.serial <= entry.serial:
            return None
        if not own.isdisjoint(map(id, other.modules())):
            return other
        above = other.root()
        if root is not None and above is not None and id(root) in _inside(above):
            return other
    return None


def _inside(module: nn.Module) -> set[int]:
    return {id(inner) for _, inner in tree.walk(module)}


def ground(model: nn.Module, addresses: Iterable[str]) -> dict[str, nn.Module]:
    """Every module on the way from the root to some addresses, by its own address."""
    modules = dict(tree.walk(model))
    found = {"": modules[""]}
    for address in addresses:
        names = address.split(".") if address else []
        for length in range(1, len(names) + 1):
            here = ".".join(names[:length])
            if here in modules:
                found[here] = modules[here]
    return found
