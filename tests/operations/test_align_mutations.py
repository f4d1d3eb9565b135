"""One operation is another: refused, or said not to be compared; never proven without a word."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import CoverageError, PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import said, shaken

NOTHING = Registry.of()
ROWS = torch.zeros(2, 5, 6)
# Every pair is two recordings and more runs: `make test-all` has the time for many.
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
Change = Callable[[Tensor], Tensor]

FREE: Mapping[str, Change] = {
    "relu": torch.relu,
    "scaled": lambda x: x * 1.5,
    "centred": lambda x: x - x.mean(-1, keepdim=True),
    "flipped": lambda x: x.flip(-1),
    "other samples": lambda x: x.flip(0),
    "rolled": lambda x: x.roll(1, -1),
    "absolute": torch.abs,
    "negative": torch.neg,
    "squared": lambda x: x * x,
    "softmax": lambda x: (x / 2).softmax(-1),
    "dropped": lambda x: functional.dropout(x, 0.5, training=True),
    "doubled": lambda x: x + x,
}
PLACES = ("first", "stem", "branch", "gate", "sum", "last", "head")
# What applies a tensor once more than the other model does, or in another place.
AGAIN: Mapping[str, tuple[str, Callable[[Network, Tensor], Tensor]]] = {
    "stem twice": ("stem", lambda net, x: net.stem(torch.tanh(x))),
    "branch twice": ("branch", lambda net, x: net.branch(torch.tanh(x))),
    "scale twice": ("scaled", lambda net, x: x * net.scale),
    "normalised twice": ("normalised", lambda net, x: x * net.norm.weight),
    "weight elsewhere": ("branch", lambda net, x: x @ net.branch.weight),
    "bias elsewhere": ("branch", lambda net, x: x + net.branch.bias),
    "last twice": ("last", lambda net, x: functional.linear(x, net.last.weight)),
}


class Network(nn.Module):
    """A stem, a gated branch with a way around, and a head; in one place something may be added."""

    def __init__(self, *, depth: int = 0, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.branch, self.gate, self.last = (nn.Linear(6, 6) for _ in range(3))
        self.deeper = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, classes)
        self.changes: dict[str, Change] = {}

    def at(self, place: str, x: Tensor) -> Tensor:
        return self.changes.get(place, lambda same: same)(x)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.at("stem", self.stem(self.at("first", x))))
        y = torch.tanh(self.at("branch", self.branch(x)))
        y = y * self.at("gate", torch.tanh(self.gate(x)))
        x = self.at("sum", x + self.at("scaled", y * self.scale))
        x = self.at("normalised", self.norm(x))
        for layer in self.deeper:
            x = layer(x)
        x = self.at("last", torch.tanh(self.last(x)))
        return self.at("head", self.head(x))


def told(donor: nn.Module, recipient: nn.Module) -> tuple[str, ...] | None:
    """What a transplant says; None where it is refused."""
    try:
        return said(donor, recipient, ROWS)
    except (PlanError, CoverageError):
        return None


def unproven(notes: tuple[str, ...] | None) -> bool:
    """Whether it is refused or said, beside what is said of another head and depth anyway."""
    return notes is None or any(
        note.startswith("not compared")
        or (note.startswith("not aligned") and ": head." not in note and ": deeper." not in note)
        for note in notes
    )


OTHERS: Mapping[str, Mapping[str, int]] = {
    "nothing else": {},
    "another head": {"classes": 5},
    "deeper": {"depth": 1},
    "deeper, another head": {"depth": 2, "classes": 5},
}
others = st.sampled_from(sorted(OTHERS))


@settings(max_examples=40 if LONG else 5, deadline=None)
@given(st.sampled_from(sorted(FREE)), st.sampled_from(PLACES), others, st.booleans())
def test_an_operation_more_is_never_proven(change: str, place: str, other: str, back: bool):
    # A normalisation centres what it is given.
    assume((change, place) != ("centred", "sum"))
    one, two = Network(), Network(**OTHERS[other])
    (two if back else one).changes[place] = FREE[change]
    assert unproven(told(one, two))


@settings(max_examples=40 if LONG else 4, deadline=None)
@given(st.sampled_from(sorted(AGAIN)), others, st.booleans(), st.booleans())
def test_a_tensor_once_more_is_never_proven(change: str, other: str, first: bool, back: bool):
    one, two = Network(), Network(**OTHERS[other])
    changed = one if first else two
    place, applied = AGAIN[change]
    changed.changes[place] = lambda x: applied(changed, x)
    assert unproven(told(two, one) if back else told(one, two))


@pytest.mark.parametrize("other", OTHERS)
def test_the_same_operations_are_proven_without_more(other: str):
    notes = told(Network(), Network(**OTHERS[other]))
    assert notes is not None
    assert notes[0].startswith("proven")
    assert not any(note.startswith("not compared") for note in notes)


class Written(nn.Module):
    """Batch normalisation written out, with the weight applied once or twice."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(6)) for _ in range(2))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("spread", torch.ones(6))
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, spread = (
            each.view(1, -1, 1, 1) for each in (self.weight, self.bias, self.mean, self.spread)
        )
        x = (x - mean) / torch.sqrt(spread + 1e-5)
        for _ in range(self.times):
            x = x * weight
        return x + bias


@pytest.mark.parametrize(("classes", "back"), [(4, False), (5, True)])
def test_a_normalisation_scaled_twice_is_no_deeper_model(classes: int, back: bool):
    def network(norm: nn.Module, channels: int) -> nn.Module:
        layers = [nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(6, channels, 1))

    images = torch.zeros(2, 3, 8, 8)
    for times in (1, 2):
        pair = [network(Written(times), 4), network(nn.BatchNorm2d(6), classes)]
        donor, recipient = reversed(pair) if back else pair
        options = {"match": "graph", "example": images, "registry": NOTHING, "min_coverage": 0.2}
        if times == 1:
            surgery.transplant(shaken(donor), recipient.eval(), **options)
            continue
        with pytest.raises(PlanError):
            surgery.transplant(shaken(donor), recipient.eval(), **options)


class Cast(nn.Module):
    """Attention whose shares are made in single precision, whatever it is given."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6, eps)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.one(x).softmax(-1, dtype=torch.float32)
        return self.norm(self.two(shares))


def test_code_that_casts_to_single_precision_is_compared_in_it():
    notes = told(Cast(1e-5), Cast(1e-5))
    assert notes is not None
    assert "in float32" in notes[0]
    assert told(Cast(1e-5), Cast(2e-5)) is None
