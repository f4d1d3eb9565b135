"""A folded listing says the same as the names it folds."""

from __future__ import annotations

import re
from itertools import product

import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from surgery.weights.folding import fold

PARTS = st.sampled_from(["conv", "conv1", "conv2", "0", "1", "2", "10", "01", "a{0..1}", "", "x7"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
NUMBERED = st.builds("layer{}.{}.w".format, st.integers(0, 12), st.integers(0, 12))


def unfolded(line: str, names: set[str]) -> list[str]:
    """Every name that a line stands for; a line that is a name stands for itself."""
    if line in names:
        return [line]
    pieces = re.split(r"\{([0-9.,]+)\}", line)
    choices = [numbers(piece) if position % 2 else [piece] for position, piece in enumerate(pieces)]
    return ["".join(choice) for choice in product(*choices)]


def numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for run in ranges.split(","):
        first, _, last = run.partition("..")
        found += map(str, range(int(first), int(last or first) + 1))
    return found


@given(st.lists(st.one_of(NAMES, NUMBERED), unique=True, max_size=60))
def test_unfolded_a_listing_is_the_names_each_once(names: list[str]):
    lines = fold(names)
    given_names = set(names)
    assert sorted(name for line in lines for name in unfolded(line, given_names)) == sorted(names)
    assert len(lines) <= len(names)


@given(st.lists(st.one_of(NAMES, NUMBERED), unique=True, max_size=30))
def test_the_first_line_holds_the_first_name(names: list[str]):
    lines = fold(names)
    assert not names or names[0] in unfolded(lines[0], set(names))


def test_layers_fold_and_gaps_show():
    names = [f"layer3.{i}.conv1.weight" for i in (*range(23), 25, 30, 31)]
    assert fold([*names, "fc.bias"]) == ("layer3.{0..22,25,30..31}.conv1.weight", "fc.bias")


def test_real_models_come_down_to_what_can_be_read():
    with torch.device("meta"):
        lines = fold(torchvision.models.resnet101().state_dict())
        dense = fold(torchvision.models.densenet121().state_dict())
    assert "layer3.{0..22}.conv1.weight" in lines
    assert len(lines) == 100
    assert "features.denseblock4.denselayer{1..16}.norm1.weight" in dense
    assert "features.denseblock1.denselayer{1..6}.conv2.weight" in dense
