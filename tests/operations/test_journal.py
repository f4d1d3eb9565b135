"""Whatever is written through the journal can be taken back, and found again entry by entry."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from surgery.operations.journal import MISSING, Journal, Write
from tests.operations.state import differences, state_of


class Attributes(dict):
    """A dict whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Frozen(OrderedDict):
    """A dict that can be locked."""

    locked = False

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.locked:
            raise TypeError("locked")
        super().__setitem__(key, value)


class Odd(list):
    """A list that wants an argument and cannot be copied."""

    def __init__(self, items: list[int]) -> None:
        super().__init__(items)

    def copy(self) -> Any:
        raise TypeError("no copies")


class Slotted:
    __slots__ = ("classes", "names")

    def __init__(self) -> None:
        self.classes = 5
        self.names = ["a"]


@dataclass(slots=True)
class SlottedData:
    classes: int = 5
    extra: Any = None


class Setter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.seen: set[int] = {1}
        self.order = Odd([])
        self.counts: defaultdict[str, int] = defaultdict(int)

    @property
    def classes(self) -> int:
        return len(self.order)

    @classes.setter
    def classes(self, value: int) -> None:
        self.order.append(value)
        self.counts["seen"] += 1
        self.seen.add(value)
        self.inner.note = value
        del self.inner.bias
        self.register_buffer("late", torch.zeros(value))


OWNERS: dict[str, Any] = {
    "namespace": lambda: SimpleNamespace(classes=5, names=["a"], table={1: "a"}),
    "dict": lambda: {"classes": 5, "names": ["a"]},
    "attributes": lambda: Attributes(classes=5),
    "ordered": lambda: OrderedDict(first=1, classes=5, last=2),
    "user dict": lambda: UserDict(classes=5),
    "frozen": lambda: Frozen(classes=5),
    "slots": Slotted,
    "slotted data": SlottedData,
    "module": Setter,
}


@pytest.mark.parametrize("name", OWNERS)
def test_a_write_is_taken_back(name: str) -> None:
    owner = OWNERS[name]()
    model = nn.Module()
    model.__dict__["held"] = owner
    before = state_of(model, process=False)
    how = "item" if isinstance(owner, dict | UserDict) else "attribute"
    journal = Journal()
    if isinstance(owner, nn.Module):
        journal.remember_modules(owner)
    journal.perform([lambda: [Write(owner, "classes", 7, how)]])
    assert differences(before, state_of(model, process=False))
    changes = journal.changes()
    assert changes
    if isinstance(owner, Frozen):
        Frozen.locked = True
    try:
        journal.take_back()
    finally:
        Frozen.locked = False
    assert not differences(before, state_of(model, process=False))
    assert not journal.changes()


@pytest.mark.parametrize("name", OWNERS)
def test_changes_lead_back_and_forth(name: str) -> None:
    owner = OWNERS[name]()
    model = nn.Module()
    model.__dict__["held"] = owner
    before = state_of(model, process=False)
    how = "item" if isinstance(owner, dict | UserDict) else "attribute"
    journal = Journal()
    if isinstance(owner, nn.Module):
        journal.remember_modules(owner)
    journal.perform([lambda: [Write(owner, "classes", 7, how)]])
    after = state_of(model, process=False)
    changes = journal.changes()
    for change in reversed(changes):
        change.put(change.before)
    assert not differences(before, state_of(model, process=False))
    for change in changes:
        change.put(change.after)
    assert not differences(after, state_of(model, process=False))


KEYS = st.sampled_from("abcdef")


@given(
    st.dictionaries(KEYS, st.integers(0, 3)),
    st.lists(st.tuples(KEYS, st.integers(0, 3) | st.none()), max_size=6),
)
def test_any_edit_of_a_dict_is_found_and_its_order_comes_back(
    start: dict[str, int], edits: list[tuple[str, int | None]]
) -> None:
    owner = SimpleNamespace(table=dict(start))
    table = owner.table
    journal = Journal()
    journal.remember(owner)
    for key, value in edits:
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    end = dict(table)
    changes = journal.changes()
    kept = [key for key in start if key in end]
    for change in reversed(changes):
        change.put(change.before)
    assert table == start
    if [key for key in end if key in start] == kept:
        assert list(table) == list(start)
    journal.take_back()
    assert list(table.items()) == list(start.items())
    assert owner.table is table


def test_an_attribute_may_be_deleted_and_comes_back_where_it_was() -> None:
    owner = SimpleNamespace(a=1, b=2, c=3)
    journal = Journal()
    journal.perform([lambda: [Write(owner, "b", MISSING)]])
    assert not hasattr(owner, "b")
    (change,) = journal.changes()
    assert (change.before, change.after) == (2, MISSING)
    assert repr(change.after) == "nothing"
    owner.d = 4
    change.put(change.before)
    assert [name for name in vars(owner) if name != "d"] == ["a", "b", "c"]


def test_a_flag_of_a_tensor_is_taken_back() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    journal = Journal()
    journal.perform([lambda: [Write(parameter, "requires_grad", False)]])
    (change,) = journal.changes()
    assert not change.now
    journal.take_back()
    assert parameter.requires_grad


def test_the_values_of_a_tensor_are_taken_back() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.sum().backward()
    gradient, pointer = parameter.grad, parameter.data_ptr()
    journal = Journal()
    journal.remember_values(parameter)
    parameter.data = torch.zeros(2, dtype=torch.double)
    gradient.data = torch.zeros(2, dtype=torch.double)
    journal.take_back()
    assert parameter.data_ptr() == pointer
    assert parameter.grad is gradient
    assert gradient.tolist() == [1, 1]
    assert gradient.dtype == parameter.dtype == torch.float


def test_an_interruption_does_not_stop_taking_back(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [SimpleNamespace(classes=5) for _ in range(4)]
    journal = Journal()
    journal.perform([lambda: [Write(owner, "classes", 7) for owner in owners]])
    from surgery.operations import journal as journals

    restore, calls = journals._Object.restore, []

    def interrupted(self: Any) -> None:
        calls.append(self)
        if len(calls) in (1, 3, 4):
            raise KeyboardInterrupt
        restore(self)

    monkeypatch.setattr(journals._Object, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.take_back()
    assert [owner.classes for owner in owners] == [5] * 4


def test_what_cannot_be_restored_is_named_and_the_rest_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = SimpleNamespace(classes=5), SimpleNamespace(classes=5)
    journal = Journal()
    journal.perform([lambda: [Write(first, "classes", 7), Write(second, "classes", 7)]])
    from surgery.operations import journal as journals

    restore = journals._Object.restore

    def broken(self: Any) -> None:
        if self.owner is second:
            raise RuntimeError("broken")
        restore(self)

    monkeypatch.setattr(journals._Object, "restore", broken)
    with pytest.raises(RuntimeError) as caught:
        journal.take_back()
    assert caught.value.__notes__ == ["a SimpleNamespace could not be restored"]
    assert first.classes == 5
