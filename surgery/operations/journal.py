"""Write to objects so that every write can be taken back, whatever fails and when.

Writes go through ``setattr``, as a user's own would; taking back goes through ``__dict__``, so
that nothing that can fail stands between a failure and the state before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

How: TypeAlias = Literal["attribute", "item"]
_MISSING = object()


@dataclass(frozen=True, eq=False)
class Write:
    """One assignment: ``owner.name = value`` or ``owner[name] = value``."""

    owner: Any
    name: Any
    value: Any
    how: How = "attribute"

    def do(self) -> None:
        """Assign."""
        if self.how == "item":
            self.owner[self.name] = self.value
        else:
            setattr(self.owner, self.name, self.value)


@dataclass(frozen=True, eq=False)
class Change:
    """One entry of a dict or a list, or a flag of a tensor, before and after."""

    container: Any
    key: Any
    before: Any
    after: Any

    @property
    def now(self) -> Any:
        """What is there at this moment."""
        if isinstance(self.container, torch.Tensor):
            return getattr(self.container, self.key)
        try:
            return self.container[self.key]
        except (KeyError, IndexError):
            return _MISSING

    def put(self, value: Any) -> None:
        """Give the entry a value it once had; no value means that it did not exist."""
        if isinstance(self.container, torch.Tensor):
            setattr(self.container, self.key, value)
        elif value is _MISSING:
            self.container.pop(self.key, None)
        else:
            self.container[self.key] = value


@dataclass(eq=False)
class Snapshot:
    """The members of one object, one level deep: which values it held, not copies of them."""

    owner: Any
    members: dict[Any, Any]
    contents: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, owner: Any) -> Snapshot:
        """Take one. Containers among the members are remembered with what they hold."""
        if isinstance(owner, torch.Tensor):
            return cls(owner, {"requires_grad": owner.requires_grad})
        members = dict(_members(owner))
        contents = {
            key: value.copy()
            for key, value in members.items()
            if isinstance(value, dict | list | set)
        }
        return cls(owner, members, contents)

    def restore(self) -> None:
        """Put every member back."""
        if isinstance(self.owner, torch.Tensor):
            self.owner.requires_grad_(self.members["requires_grad"])
            return
        live = _members(self.owner)
        live.clear()
        live.update(self.members)
        for key, content in self.contents.items():
            _refill(self.members[key], content)

    def changes(self, later: Snapshot) -> Iterator[Change]:
        """What differs in a later snapshot of the same object."""
        container = self.owner if isinstance(self.owner, torch.Tensor) else _members(self.owner)
        for key in {**self.members, **later.members}:
            before = self.members.get(key, _MISSING)
            after = later.members.get(key, _MISSING)
            if before is not after:
                yield Change(container, key, before, after)
            elif key in self.contents and key in later.contents:
                for entry, old, new in _differences(self.contents[key], later.contents[key]):
                    yield Change(before, entry, old, new)


def _members(owner: Any) -> dict[Any, Any]:
    members: dict[Any, Any] = owner if isinstance(owner, dict) else owner.__dict__
    return members


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _differences(before: Any, after: Any) -> Iterator[tuple[Any, Any, Any]]:
    if isinstance(before, dict):
        for key in {**before, **after}:
            old, new = before.get(key, _MISSING), after.get(key, _MISSING)
            if old is not new:
                yield key, old, new
    elif isinstance(before, list) and len(before) == len(after):
        for position, (old, new) in enumerate(zip(before, after, strict=True)):
            if old is not new:
                yield position, old, new


class Journal:
    """Performs writes and remembers, for every object written to, what it held before.

    Example:
        >>> from types import SimpleNamespace
        >>> from surgery.operations.journal import Journal, Write
        >>> config = SimpleNamespace(num_classes=3)
        >>> journal = Journal()
        >>> journal.perform([lambda: [Write(config, "num_classes", 7)]])
        >>> journal.take_back()
        >>> config.num_classes
        3
    """

    def __init__(self) -> None:
        self.before: dict[int, Snapshot] = {}
        self.after: dict[int, Snapshot] = {}

    def perform(self, makers: list[Callable[[], list[Write]]]) -> None:
        """Carry out writes one after the other; if one fails, take all of them back.

        Args:
            makers: each makes the writes of one step, from the state the steps before left.
        """
        try:
            for maker in makers:
                for write in maker():
                    self.remember(write.owner)
                    write.do()
            self.after = {key: Snapshot.of(shot.owner) for key, shot in self.before.items()}
        except BaseException:
            self.take_back()
            raise

    def remember(self, owner: Any) -> None:
        """Snapshot an object before its first write."""
        if id(owner) not in self.before:
            self.before[id(owner)] = Snapshot.of(owner)

    def take_back(self) -> None:
        """Restore every object written to."""
        for snapshot in reversed(self.before.values()):
            snapshot.restore()

    def changes(self) -> Iterator[Change]:
        """What the writes changed, entry by entry."""
        for key, snapshot in self.before.items():
            yield from snapshot.changes(self.after[key])
