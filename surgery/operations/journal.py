"""Write to objects so that every write can be taken back, whatever fails and when.

Writes go through ``setattr``, as a user's own would. Taking back goes through the dicts and lists
underneath, so that nothing of the user's stands between a failure and the state before it.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from surgery.operations.content import Content, memory_for, set_version, write_in_place

How: TypeAlias = Literal["attribute", "item", "values"]

_CONTAINERS = (dict, list, set)
_BASES = (OrderedDict, dict, list, set)

# The key of a change of a tensor's values.
VALUES = "data"

# How often taking back starts again where it is interrupted (by Ctrl-C) before it moves on.
_PATIENCE = 8


class _Missing:
    """Stands for an entry that is not there."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()


@dataclass(frozen=True, eq=False)
class Write:
    """One assignment: ``owner.name = value``, ``owner[name] = value`` or ``owner[...] = value``."""

    owner: Any
    name: Any
    value: Any
    how: How = "attribute"

    def do(self) -> None:
        """Assign. Values are written by a journal, which knows how to take them back."""
        if self.how == "item":
            self.owner[self.name] = self.value
        elif self.value is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.value)


@dataclass(frozen=True, eq=False)
class Change:
    """One entry of an object that became another.

    Attributes:
        owner: the object.
        member: the name of the dict, list or set in it that holds the entry; None where the
            owner itself does.
        key: the entry; None for a whole list or set, ``data`` for the values of a tensor.
        before: what was there, ``MISSING`` for nothing.
        after: what is there now; for values a stand-in, which holds no memory.
        followers: for an entry of a dict that went: the keys that came after it.
    """

    owner: Any
    member: Any
    key: Any
    before: Any
    after: Any
    followers: tuple[Any, ...] = ()

    @property
    def container(self) -> Any:
        """What holds the entry at this moment; a module may have made itself a new list since."""
        return self.owner if self.member is None else get_entry(self.owner, self.member)

    @property
    def now(self) -> Any:
        """What is there at this moment."""
        container = self.container
        return container if self.key is None else get_entry(container, self.key)

    @property
    def of_values(self) -> bool:
        """Whether a tensor got other values, and all else about it stayed."""
        return isinstance(self.owner, torch.Tensor) and self.key == VALUES

    def put(self, value: Any) -> None:
        """Give the entry a value that it once had."""
        container = self.container
        if self.key is None:
            _refill(container, value)
            return
        set_entry(container, self.key, value)
        for key in self.followers if value is not MISSING else ():
            moved = get_entry(container, key)
            if moved is not MISSING:
                set_entry(container, key, MISSING)
                set_entry(container, key, moved)


def get_entry(container: Any, key: Any) -> Any:
    """One entry of a dict or a list, one member of an object, one flag of a tensor."""
    if isinstance(container, dict):
        return dict.get(container, key, MISSING)
    if isinstance(container, list):
        return list.__getitem__(container, key) if key < len(container) else MISSING
    if key in _slots(type(container)) or isinstance(container, torch.Tensor):
        return getattr(container, key, MISSING)
    return getattr(container, "__dict__", {}).get(key, MISSING)


def set_entry(container: Any, key: Any, value: Any) -> None:
    """Set what ``get_entry`` gives, past every ``__setattr__``; ``MISSING`` removes it."""
    if isinstance(container, list):
        list.__setitem__(container, key, value)
    elif isinstance(container, torch.Tensor):
        setattr(container, key, value)
    elif isinstance(container, dict):
        _set_item(container, key, value)
    elif key in _slots(type(container)):
        if value is MISSING:
            object.__delattr__(container, key)
        else:
            object.__setattr__(container, key, value)
    else:
        _set_item(container.__dict__, key, value)


def _set_item(container: dict[Any, Any], key: Any, value: Any) -> None:
    base = _base(container)
    if value is MISSING:
        base.pop(container, key, None)
    else:
        base.__setitem__(container, key, value)


def _base(container: Any) -> Any:
    """The class whose methods reach what a container holds, past those of a user's subclass."""
    kind = type(container)
    return kind if kind in _BASES else next(b for b in _BASES if isinstance(container, b))


def _copied(container: Any) -> Any:
    """A plain dict, list or set of the same values."""
    base = _base(container)
    if base is set:
        return set(base.__iter__(container))
    return list(base.__iter__(container)) if base is list else dict(base.items(container))


def _refill(container: Any, content: Any) -> None:
    base = _base(container)
    base.clear(container)
    if base is list:
        base.extend(container, content)
    elif base is set:
        base.update(container, content)
    else:
        for key in content:
            base.__setitem__(container, key, content[key])


def _all_slots(cls: type) -> tuple[str, ...]:
    if cls.__module__ == "builtins":
        return ()
    listed = (base.__dict__.get("__slots__", ()) for base in cls.__mro__)
    names = [name for found in listed for name in ((found,) if isinstance(found, str) else found)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


_slots: Callable[[type], tuple[str, ...]] = functools.lru_cache(maxsize=4096)(_all_slots)


class _Content:
    """What one dict, list or set held: the same values, not copies of them."""

    __slots__ = ("container", "held", "member", "owner")

    def __init__(self, owner: Any, member: Any, container: Any, held: Any = None) -> None:
        self.owner = owner
        self.member = member
        self.container = container
        self.held = _copied(container) if held is None else held

    def same(self) -> bool:
        now, was, base = self.container, self.held, _base(self.container)
        if base.__len__(now) != len(was):
            return False
        if base is set:
            return bool(base.__eq__(now, was))
        if base is list:
            return all(x is y for x, y in zip(base.__iter__(now), was, strict=True))
        pairs = zip(base.items(now), was.items(), strict=True)
        return all(a is b and x is y for (a, x), (b, y) in pairs)

    def restore(self) -> None:
        if not self.same():
            _refill(self.container, self.held)

    def changes(self) -> Iterator[Change]:
        if self.same():
            return
        now, was = _copied(self.container), self.held
        order = list(was) if isinstance(was, dict) else []
        if isinstance(now, dict):
            keys = list({**was, **now})
        elif isinstance(now, list) and len(now) == len(was):
            keys = list(range(len(now)))
        else:
            yield Change(self.owner, self.member, None, was, now)
            return
        for key in keys:
            before, after = get_entry(was, key), get_entry(now, key)
            if before is not after:
                gone = after is MISSING and order
                followers = tuple(order[order.index(key) + 1 :]) if gone else ()
                yield Change(self.owner, self.member, key, before, after, followers)


class _Object:
    """What one object held, one level deep: its members, and what dicts and lists among them do."""

    __slots__ = ("contents", "empty", "owner", "slots")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.contents: list[_Content] = []
        # Nearly every dict of a module is empty: no copy then.
        self.empty: list[tuple[Any, Any]] = []
        self.slots: dict[str, Any] = {}
        if isinstance(owner, torch.Tensor):
            self.slots["requires_grad"] = owner.requires_grad
            return
        if isinstance(owner, _CONTAINERS):
            self.contents.append(_Content(owner, None, owner))
        members = getattr(owner, "__dict__", None)
        if members is not None and members is not owner:
            # Entries of a user's own dict are told from its attributes by who holds them.
            holder = members if isinstance(owner, _CONTAINERS) else owner
            self.contents.append(_Content(holder, None, members))
            for name, value in members.items():
                if isinstance(value, _CONTAINERS):
                    self._add(name, value)
        for name in _slots(type(owner)):
            value = self.slots[name] = getattr(owner, name, MISSING)
            if isinstance(value, _CONTAINERS):
                self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        if _base(value).__len__(value):
            self.contents.append(_Content(self.owner, name, value))
        else:
            self.empty.append((name, value))

    def restore(self) -> None:
        for name, value in self.slots.items():
            if get_entry(self.owner, name) is not value:
                set_entry(self.owner, name, value)
        for content in self.contents:
            content.restore()
        for _, container in self.empty:
            if _base(container).__len__(container):
                _refill(container, ())

    def changes(self) -> Iterator[Change]:
        for name, value in self.slots.items():
            after = get_entry(self.owner, name)
            if after is not value:
                yield Change(self.owner, None, name, value, after)
        for content in self.contents:
            yield from content.changes()
        for name, container in self.empty:
            base = _base(container)
            if base.__len__(container):
                held: Any = [] if base is list else set() if base is set else {}
                yield from _Content(self.owner, name, container, held).changes()


@dataclass(frozen=True, eq=False)
class _Values:
    """Where the values of a tensor, and those of its gradient, are."""

    owner: torch.Tensor
    data: torch.Tensor
    gradient: torch.Tensor | None

    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Values:
        gradient = tensor.grad if tensor.is_leaf else None
        held = None if gradient is None else gradient.data
        return cls(tensor, tensor.data, held, _version(tensor))

    def restore(self) -> None:
        self.owner.data = self.data
        if self.gradient is not None and self.owner.grad is not None:
            self.owner.grad.data = self.gradient
        set_version(self.owner, self.version)


@dataclass(frozen=True, eq=False)
class _Bytes:
    """What was in the memory of a tensor that is written in place."""

    owner: torch.Tensor
    data: torch.Tensor
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Bytes:
        with torch.inference_mode(tensor.is_inference()):
            return cls(tensor, tensor.data.clone(), _version(tensor))

    def restore(self) -> None:
        write_in_place(self.owner, self.data)
        set_version(self.owner, self.version)


def _version(tensor: torch.Tensor) -> int:
    # Inference tensors keep none.
    return -1 if tensor.is_inference() else tensor._version


class Journal:
    """Performs writes and remembers, for every object it was told of, what that held before.

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
        self._held: dict[int, _Object] = {}
        self._values: dict[int, _Values | _Bytes] = {}
        self._filled: dict[int, torch.Tensor] = {}

    def perform(self, makers: Iterable[Callable[[], list[Write]]]) -> None:
        """Carry out writes one after the other. Who calls it takes them back if one fails.

        Args:
            makers: each makes the writes of one step, from the state the steps before left.
        """
        for maker in makers:
            for write in maker():
                if write.how == "values":
                    self.fill(write.owner, write.value)
                else:
                    self.remember(write.owner)
                    write.do()

    def remember(self, owner: Any) -> None:
        """Note what an object holds, unless that is known already."""
        if id(owner) not in self._held:
            self._held[id(owner)] = _Object(owner)

    def remember_modules(self, root: nn.Module) -> None:
        """Note what every module in a tree holds, wrappers included: a setter may reach any."""
        pending: list[nn.Module] = [root]
        while pending:
            module = pending.pop()
            if id(module) not in self._held:
                self._held[id(module)] = _Object(module)
                pending += [child for child in module._modules.values() if child is not None]

    def remember_values(self, tensor: torch.Tensor) -> None:
        """Note where a tensor's values are, so that ``tensor.data = other`` can be taken back."""
        if id(tensor) not in self._values:
            self._values[id(tensor)] = _Values.of(tensor)

    def fill(self, tensor: torch.Tensor, content: Content) -> None:
        """Give a tensor other values; it stays the same object, where it is and as it is.

        Args:
            tensor: what is written to, once in a journal.
            content: the values.
        """
        values = content.read()
        memory = memory_for(tensor, values, content.fresh)
        self._filled[id(tensor)] = tensor
        if memory is not None:
            self.remember_values(tensor)
            tensor.data = memory
        else:
            self._values.setdefault(id(tensor), _Bytes.of(tensor))
            write_in_place(tensor, values)

    def tell_autograd(self) -> None:
        """Mark what was filled as changed: a graph recorded before refuses to go backward then."""
        for tensor in self._filled.values():
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)

    def take_back(self) -> None:
        """Restore everything that was noted, also where that itself is interrupted.

        Raises:
            BaseException: what interrupted it, once everything is restored.
        """
        pending: list[_Object | _Values | _Bytes]
        pending = [*self._held.values(), *self._values.values()]
        interrupted: BaseException | None = None
        patience = _PATIENCE
        while pending:
            try:
                pending[-1].restore()
                pending.pop()
                patience = _PATIENCE
            except BaseException as error:
                interrupted = error
                patience -= 1
                if not patience:
                    lost = pending.pop()
                    error.add_note(f"a {type(lost.owner).__name__} could not be restored")
        if interrupted is not None:
            raise interrupted

    def changes(self) -> tuple[Change, ...]:
        """What became different since it was noted, entry by entry; then the values written."""
        entries = [change for held in self._held.values() for change in held.changes()]
        return (*entries, *(_filling(t, self._values[key].data) for key, t in self._filled.items()))


def _filling(tensor: torch.Tensor, before: torch.Tensor) -> Change:
    # One number stands for all: what is there now would keep its memory after the next writing.
    after = tensor.data.new_empty(()).expand(tensor.shape)
    return Change(tensor, None, VALUES, before, after)
