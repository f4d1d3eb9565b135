"""An operation more, wherever saturation may hide it: refused, or equal and named."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import CoverageError, PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import PAIRS, pair_of, shaken

ROWS = torch.zeros(4, 5, 6)
# Every pair is two recordings and more runs: `make test-all` has the time for many.
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
NAMED = ("this example does not show it", "differs, and this example", "not compared")
Change = Callable[[Tensor], Tensor]

# By what they are called in a recording: without parameters, and of one value.
CHANGES: Mapping[str, Change] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "clamp": lambda x: x.clamp(-3, 3),
    "abs": torch.abs,
    "round": torch.round,
    "div": functional.softsign,
    "mul": lambda x: x * 1.5,
    "add": lambda x: x + 0.5,
    "neg": torch.neg,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "softmax": lambda x: x.softmax(-1),
    "sub": lambda x: x - x.mean(-1, keepdim=True),
    "flip": lambda x: x.flip(-1),
    "sin": torch.sin,
}
# What changes nothing, whatever it is given.
NEUTRAL: Mapping[str, Change] = {
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
    "once": lambda x: x * 1.0,
    "nothing": lambda x: x + 0,
    "copy": lambda x: x.clone().contiguous(),
    "turned": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "mean of one": lambda x: x.unsqueeze(-1).mean(-1),
    "same size": lambda x: functional.adaptive_avg_pool1d(x, x.shape[-1]),
}
PLACES = ("first", "stem", "gate", "large", "shut", "before", "dead", "branch", "sum", "last")


class Gated(nn.Module):
    """A gate that is open or shut and nothing between, and a branch that says nothing."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.gate, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.last, self.head = nn.Linear(6, 6), nn.Linear(6, classes)
        self.changes: dict[str, Change] = {}

    def at(self, place: str, x: Tensor) -> Tensor:
        return self.changes.get(place, lambda same: same)(x)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.at("stem", self.stem(self.at("first", x))))
        gate = self.at("large", self.at("gate", self.gate(x)) * 1e9) * 1e9
        gate = self.at("shut", torch.sigmoid(gate))
        dead = self.at("dead", torch.sigmoid(self.at("before", x) - 1e9))
        x = self.at("sum", x + self.at("branch", self.value(x)) * gate + dead)
        return self.head(self.at("last", torch.tanh(self.last(x))))


def brought(donor: nn.Module, recipient: nn.Module, x: Tensor) -> tuple[str, ...] | None:
    """The notes of a transplant that say what is not shown; None where it is refused.

    Whatever is not refused computes the same, or is not compared.
    """
    donor, recipient = shaken(donor), copy.deepcopy(recipient).eval()
    options = {"match": "graph", "example": x, "registry": Registry.of(), "min_coverage": 0.2}
    try:
        outcome = surgery.transplant(donor, recipient, **options)
    except (PlanError, CoverageError):
        return None
    notes = tuple(outcome.plan.notes)
    whole = not any(note.startswith("not ") for note in notes)
    if whole and x.is_floating_point():
        fresh = torch.randn(x.shape)
        assert torch.allclose(donor(fresh), outcome.model(fresh), rtol=1e-4, atol=1e-5)
    return tuple(note for note in notes if note.startswith(NAMED))


changes, places = st.sampled_from(sorted(CHANGES)), st.sampled_from(PLACES)
heads = st.sampled_from((4, 4, 5))


@settings(max_examples=150 if LONG else 12, deadline=None)
@given(changes, places, heads, st.booleans())
def test_an_operation_more_is_refused_or_named(name: str, place: str, classes: int, back: bool):
    pair = [Gated(), Gated(classes)]
    pair[back].changes[place] = CHANGES[name]
    told = brought(*pair, ROWS)
    words = ("max", "min") if name in ("relu", "clamp") else (name,)
    assert told is None or any(word in note for note in told for word in words)


@settings(max_examples=60 if LONG else 8, deadline=None)
@given(st.sampled_from(sorted(NEUTRAL)), places, heads, st.booleans())
def test_what_changes_nothing_is_not_named(name: str, place: str, classes: int, back: bool):
    pair = [Gated(), Gated(classes)]
    pair[back].changes[place] = NEUTRAL[name]
    assert brought(*pair, ROWS) == ()


@pytest.mark.parametrize("place", ["gate", "large", "before", "dead"])
@pytest.mark.parametrize("back", [False, True])
def test_what_saturation_hides_is_named(place: str, back: bool):
    pair = [Gated(), Gated()]
    pair[back].changes[place] = lambda x: torch.tanh(x) * 2
    told = brought(*pair, ROWS)
    assert told is not None
    side = ("donor", "recipient")[back]
    assert any(f"only the {side} has it" in note and "tanh" in note for note in told)


class Gates(nn.Module):
    """Two gates that are open or shut, made in one order or the other."""

    def __init__(self, first: int, changed: int, change: Change = torch.tanh) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(6, size) for size in (6, 1))
        self.last = nn.Linear(6, 4)
        self.first, self.changed, self.change = first, changed, change

    def forward(self, x: Tensor) -> Tensor:
        made = {}
        for place in (self.first, 1 - self.first):
            gate = self.gates[place](x) * 1e9
            gate = self.change(gate) if place == self.changed else gate
            made[place] = torch.sigmoid(gate * 1e9)
        return self.last(made[0] * made[1])


@pytest.mark.parametrize("back", [False, True])
def test_the_same_operation_on_something_else_is_named(back: bool):
    # In order of execution both do the same.
    told = brought(Gates(back, back), Gates(not back, not back), ROWS)
    assert told is not None
    assert {note.split(", and ")[1][:14] for note in told} == {"only the donor", "only the recip"}
    assert all("tanh" in note for note in told)
    assert brought(Gates(0, back), Gates(1, back), ROWS) == ()


@pytest.mark.parametrize("back", [False, True])
def test_one_of_several_is_named_where_the_rest_is_written_out(back: bool):
    # What is never negative has no sign to lose.
    signs: Mapping[str, Change] = {"kept": lambda x: x, "lost": torch.abs}
    for name, sign in signs.items():
        pair = [Gated(), Gated()]
        pair[back].changes["stem"] = torch.tanh
        pair[not back].changes["stem"] = lambda x, sign=sign: 2 / (1 + sign((-2 * x).exp())) - 1
        told = brought(*pair, ROWS)
        assert told is not None
        assert [note.rpartition(" ")[2] for note in told] == {"kept": [], "lost": ["abs()"]}[name]


@pytest.mark.parametrize("name", ["mul", "add"])
@pytest.mark.parametrize("back", [False, True])
def test_numbers_that_saturation_hides_are_named(name: str, back: bool):
    operation = {"mul": torch.mul, "add": torch.add}[name]
    numbers = (3.0, 2.0) if back else (2.0, 3.0)
    pair = [Gated(), Gated()]
    for each, number in zip(pair, numbers, strict=True):
        each.changes["large"] = lambda x, number=number: operation(x, number)
    told = brought(*pair, ROWS)
    assert told is not None
    (note,) = told
    assert f"{numbers[0]}" in note
    assert f"{numbers[1]}" in note
    # Where numbers go on, another number is another result.
    for each, number in zip(pair, numbers, strict=True):
        each.changes = {"stem": lambda x, number=number: operation(x, number)}
    assert brought(*pair, ROWS) is None


@pytest.mark.parametrize("name", PAIRS)
def test_two_spellings_of_one_thing_are_no_difference(name: str):
    donor, recipient, x = pair_of(name)
    assert brought(donor, recipient, x) == ()
