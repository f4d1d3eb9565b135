"""Patterns: a name fits where it fits itself or anything it lies in."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import ArgumentError
from surgery.patterns import fitting, listed, prefixes

PARTS = st.sampled_from(["layer1", "layer2", "0", "1", "conv", "weight"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@given(NAMES)
def test_a_name_fits_every_module_it_lies_in_and_no_other(name: str):
    inside = prefixes(name)
    assert inside[-1] == name
    assert all(fitting(prefix, "drop")(name) for prefix in inside)
    assert not fitting(f"{name}.more", "drop")(name)
    assert not fitting(name[:-1], "drop")(name)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("layer*.0", ["layer1.0.weight", "layer2.0"]),
        ("*.weight", ["layer1.0.weight", "fc.weight"]),
        ("layer?", ["layer1.0.weight", "layer2.0"]),
        (re.compile(r"layer[13]"), ["layer1.0.weight"]),
        (lambda name: name == "fc", ["fc.weight"]),
        ("*", ["layer1.0.weight", "layer2.0", "fc.weight"]),
        ("weight", []),
    ],
)
def test_what_a_pattern_fits(pattern: object, fits: list[str]):
    names = ["layer1.0.weight", "layer2.0", "fc.weight"]
    assert list(filter(fitting(pattern, "drop"), names)) == fits


@pytest.mark.parametrize("wrong", [3, None, b"fc"])
def test_what_is_no_pattern_is_refused(wrong: object):
    with pytest.raises(ArgumentError, match="names no tensor"):
        listed(wrong, "drop")
    with pytest.raises(ArgumentError, match="names no tensor"):
        fitting(wrong, "drop")
