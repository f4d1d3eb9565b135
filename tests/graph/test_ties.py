"""Cells that look the same from everywhere, and what it costs to tell them apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from surgery.families.registry import Registry
from surgery.graph.align import alignments
from surgery.graph.example import Example
from surgery.graph.record import record_graph
from surgery.graph.reduce import canonical
from surgery.operations.align import Twins, correspondences, twins_of

NOTHING = Registry.of()


def calls(work: Callable[[], Any]) -> tuple[Any, int]:
    """What some work returns, and how many functions it called."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        return work(), count
    finally:
        sys.setprofile(None)


class Experts(nn.Module):
    """Layers of branches that nothing tells apart; in the other order, or written otherwise."""

    def __init__(self, layers: int, width: int, back: bool = False) -> None:
        super().__init__()
        self.back = back
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(width))
            for _ in range(layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            found = [branch(x) for branch in (reversed(layer) if self.back else layer)]
            x = torch.stack(found).sum(0) if self.back else sum(found[1:], found[0])
        return x


class Weighed(nn.Module):
    """Two branches that numbers in the code tell apart."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.back = back
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.back:
            tripled = self.two(x).mul(3)
            return self.one(x).mul(2) + tripled
        return self.one(x).mul(2) + self.two(x).mul(3)


class Gated(nn.Module):
    """Two ways through one layer that differ in what lies on them, written in two ways."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.layer = nn.Conv2d(3, 4, 1)
        self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made, seen = self.layer(x), x.flatten(2).amax(2)
        mean = made.mean(2).mean(2) if self.apart else made.mean((2, 3))
        peak = made.flatten(2).amax(2)
        if self.apart:
            return self.two(seen) * peak + self.one(seen) * mean
        return self.one(seen) * mean + self.two(seen) * peak


def twins(one: nn.Module, other: nn.Module, x: torch.Tensor) -> Twins:
    return twins_of(one, other, x, registry=NOTHING)


def renaming(one: nn.Module, other: nn.Module, x: torch.Tensor) -> tuple[dict[str, Any], int]:
    found, _ = next(correspondences(twins(one, other, x)))
    return found.rename, found.ambiguous


def test_numbers_in_the_code_tell_branches_apart():
    rename, open_ = renaming(Weighed(False), Weighed(True), torch.zeros(1, 4))
    assert rename == {name: name for name in rename}
    assert not open_


def test_what_lies_on_the_way_tells_branches_apart_however_often_it_is_repeated():
    rename, open_ = renaming(Gated(False), Gated(True), torch.zeros(1, 3, 4, 4))
    assert rename == {name: name for name in rename}
    assert not open_


def test_every_way_is_another_and_all_of_them_are_tried_where_they_are_few():
    sides = [
        canonical(record_graph(Experts(1, 3), Example((torch.zeros(1, 4),)), train=False))
        for _ in range(2)
    ]
    found = [each.pairs for each in alignments(*sides, limit=100)]
    assert len(found) == len(set(found)) == 6
    assert all(each.complete for each in alignments(*sides))
    assert len(list(alignments(*sides, limit=4))) == 4


def test_hundreds_of_branches_are_told_apart_in_as_many_steps():
    """Twice the layers, twice the work; and no deeper a stack of calls than Python has."""
    counted = []
    for layers in (40, 80):
        both = twins(Experts(layers, 8), Experts(layers, 8), torch.zeros(1, 4))
        (found, alignment), count = calls(lambda both=both: next(correspondences(both)))
        assert found.coverage == 1
        assert len(alignment.open) > layers
        counted.append(count)
    assert counted[1] < 2.3 * counted[0]


# What costs most beside its recording: many streams that meet, many branches, many small layers.
COSTLY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "densenet": (lambda: torchvision.models.densenet169(weights=None), (1, 3, 64, 64)),
    "experts": (lambda: Experts(12, 8), (1, 4)),
    "resnet": (lambda: torchvision.models.resnet152(weights=None), (1, 3, 64, 64)),
    "efficientnet": (lambda: torchvision.models.efficientnet_b3(weights=None), (1, 3, 64, 64)),
}


@pytest.mark.parametrize("name", COSTLY)
def test_aligning_takes_less_than_twice_the_steps_of_recording(name: str):
    """Steps, for times hold collections of everything else that is in memory."""
    make, shape = COSTLY[name]
    with torch.device("meta"):
        one, other = make(), make()
    x = torch.zeros(shape, device="meta")
    twins(one, other, x)
    both, recording = calls(lambda: twins(one, other, x))
    _, aligning = calls(lambda: next(correspondences(both)))
    assert aligning < 2 * recording
