"""The report on a difference: what is where, layers folded, names as data."""

from __future__ import annotations

import json
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

import surgery
from surgery.families.registry import Registry
from surgery.reports.difference import unfold
from surgery.weights.comparison import Difference
from surgery.weights.folding import fold
from tests.reports import golden
from tests.reports.models import EVIL


def difference() -> Difference:
    """Something in every part of the report."""
    weight = torch.arange(4.0).view(2, 2)
    a = {f"layer{i}.{j}.w": weight.clone() for i in range(6) for j in range(2)}
    b = {key: value + 0.25 * key.endswith("0.w") for key, value in a.items()}
    a |= {"fc.w": torch.zeros(9, 2), "half": torch.tensor([1 / 3]), "gone.0.w": torch.ones(1)}
    b |= {"fc.w": torch.zeros(5, 2), "half": torch.tensor([1 / 3]).half(), EVIL: torch.ones(3)}
    a |= {"counter": torch.tensor(2**62), "near": torch.ones(2), "broken": torch.tensor([math.nan])}
    b |= {"counter": torch.tensor(-(2**62)), "near": torch.ones(2) + 1e-6}
    b |= {"broken": torch.tensor([math.inf])}
    a["tied"] = a["layer5.1.w"]
    b["tied"] = weight.clone()
    b = {f"module.{key}": value for key, value in b.items()}
    return surgery.diff(a, b, registry=Registry.of(), tolerance=(1e-5, 0.0))


def test_a_difference_as_text():
    golden.check("difference.txt", surgery.report(difference(), width=80))


def test_a_difference_as_json():
    golden.check("difference.json", surgery.report(difference(), "json"))


def test_a_number_that_json_lacks_is_none():
    huge = torch.tensor([1.7e308], dtype=torch.float64)
    found = surgery.diff({"w": huge}, {"w": -huge}, registry=Registry.of())
    data = json.loads(surgery.report(found, "json"))
    assert data["changed_count"] == 1
    assert data["largest"] is data["pairs"][0]["largest"] is None
    assert "inf" in str(found)


def test_nothing_to_say_is_short():
    found = surgery.diff({"w": torch.ones(1)}, {"w": torch.ones(1)}, registry=Registry.of())
    assert len(str(found).splitlines()) == 6


PARTS = st.sampled_from(
    ["layer1", "layer2", "layer3", "layer4", "layer5", "0", "1", "7", "w", "{0}"]
)


@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True))
def test_unfolding_undoes_folding(names: list[str]):
    lines = [line for line in fold(names) if line not in names]
    alone = [name for name in names if name in fold(names)]
    assert sorted([name for line in lines for name in unfold(line)] + alone) == sorted(names)
