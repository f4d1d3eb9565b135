"""Class rows that carry over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import ArgumentError
from surgery.operations.keep import carry_rows, resolve_keep

NAMES = ["dog", "cat", "fish", "N/A", "N/A"]


def resolved(keep: object, new: int = 3, names: list[str] | None = None) -> dict[int, tuple]:
    return resolve_keep(keep, new=new, old=5, new_names=names, old_names=NAMES)


def test_nothing_is_kept_unless_asked() -> None:
    assert resolved(None) == {}


def test_classes_are_named_by_index_or_name() -> None:
    assert resolved({0: "fish", "cat": 1}, names=["a", "cat", "b"]) == {0: (2,), 1: (1,)}


@pytest.mark.parametrize("kind", [np.int64, np.uint8, int])
def test_indices_are_whole_numbers_of_any_type(kind: type) -> None:
    kept = resolved({kind(1): kind(2), 0: [kind(3), 4]})
    assert kept == {1: (2,), 0: (3, 4)}
    assert {type(place) for found in kept.values() for place in found} == {int}
    assert {type(place) for place in kept} == {int}
    for wrong in (np.bool_(True), 1.0):
        with pytest.raises(ArgumentError, match="its index or its name"):
            resolved({0: wrong})


def test_names_that_stand_for_none_are_none() -> None:
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    by_place = resolve_keep("all", new=5, old=3, new_names=None, old_names=labels)
    assert by_place == {0: (0,), 1: (1,), 2: (2,)}
    with pytest.raises(ArgumentError, match="the old classes have no names to compare"):
        resolve_keep("all", new=2, old=3, new_names=["dog", "cat"], old_names=labels)
    assert resolve_keep({0: "LABEL_2"}, new=2, old=3, new_names=None, old_names=labels) == {0: (2,)}


@pytest.mark.parametrize("new", ["background", "__background__", "_Background_", "N/A"])
@pytest.mark.parametrize("keep", ["all", "named"])
def test_all_names_of_the_background_are_one_where_there_is_one(new: str, keep: str) -> None:
    old, names = ["__background__", "cat", "N/A"], [new, "cat"]
    asked = "all" if keep == "all" else {new: "Background", "cat": "cat"}
    both = {"new": 2, "old": 3, "new_names": names, "old_names": old}
    if new != "N/A":
        assert resolve_keep(asked, background="__background__", **both) == {0: (0,), 1: (1,)}
    elif keep == "all":
        # A thing of the same name stays a thing.
        assert resolve_keep(asked, background="__background__", **both) == {0: (2,), 1: (1,)}
    if keep == "all" and new not in old:
        assert resolve_keep("all", **both) == {1: (1,)}


def test_several_old_classes_merge() -> None:
    assert resolved({2: ["dog", 1]}) == {2: (0, 1)}


def test_all_means_same_names_in_any_order() -> None:
    assert resolved("all", names=["fish", "bird", "dog"]) == {0: (2,), 2: (0,)}


def test_all_without_names_means_same_indices() -> None:
    kept = resolve_keep("all", new=2, old=3, new_names=None, old_names=None)
    assert kept == {0: (0,), 1: (1,)}


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({0: 5}, "no old class 5"),
        ({3: 0}, "no new class 3"),
        ({0: "N/A"}, "2 old classes have this name"),
        ({0: "bird"}, "no old class has it"),
        ({True: 0}, "its index or its name"),
        ({0: []}, "from no class"),
        ([0, 1], "which old classes"),
        ("some", "which old classes"),
    ],
)
def test_wrong_classes_are_refused(keep: object, says: str) -> None:
    with pytest.raises(ArgumentError, match=says) as raised:
        resolved(keep)
    assert raised.value.fix


def test_one_new_class_named_twice_is_refused() -> None:
    with pytest.raises(ArgumentError, match="named twice"):
        resolved({0: 1, "a": 2}, names=["a", "b", "c"])


def test_all_with_names_on_one_side_asks_for_the_others() -> None:
    with pytest.raises(ArgumentError, match="no names to compare"):
        resolved("all", names=None)


@given(st.data())
def test_kept_rows_are_bit_identical_and_the_others_stay(data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 1))
    old_size, new_size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    rows = data.draw(
        st.dictionaries(
            st.integers(0, new_size - 1),
            st.lists(st.integers(0, old_size - 1), min_size=1, max_size=3).map(tuple),
        )
    )
    shape = [3, 3]
    old = torch.randn([*shape[:axis], old_size, *shape[axis + 1 :]])
    new = torch.randn([*shape[:axis], new_size, *shape[axis + 1 :]])
    before = new.clone()
    carry_rows(old, new, axis, rows)
    for index in range(new_size):
        row = new.select(axis, index)
        if index not in rows:
            assert torch.equal(row, before.select(axis, index))
        elif len(rows[index]) == 1:
            assert torch.equal(row, old.select(axis, rows[index][0]))
        else:
            mean = torch.stack([old.select(axis, place) for place in rows[index]]).mean(0)
            assert torch.allclose(row, mean)
