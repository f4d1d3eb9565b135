"""What is common behind something that differs: proven there, and no difference gets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import CoverageError, PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import contents, shaken

NOTHING = Registry.of()


class Network(nn.Module):
    """A stem, two layers with a way around, and a head; everything can be another."""

    def __init__(self, channels: int = 3, kernel: int = 3, classes: int = 5, **body: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, kernel, padding=kernel // 2)
        self.body = Body(**body)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Body(nn.Module):
    """What both have in common, unless one of these is set."""

    def __init__(
        self,
        first: Callable[[Tensor], Tensor] = functional.relu,
        between: Callable[[Tensor], Tensor] = functional.relu,
        strides: tuple[int, int] = (1, 2),
        pad: tuple[int, int, int, int] = (1, 1, 1, 1),
        way: str = "add",
        eps: float = 1e-5,
        deeper: bool = False,
    ) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, stride=strides[0])
        self.norm = nn.BatchNorm2d(8, eps)
        self.two = nn.Conv2d(8, 8, 3, stride=strides[1], padding=1)
        self.three = nn.Conv2d(8, 8, 1)
        self.deeper = nn.Conv2d(8, 8, 5, padding=2) if deeper else None
        self.first, self.between, self.pad, self.way = first, between, pad, way

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(functional.pad(self.first(x), self.pad))
        if self.deeper is not None:
            x = self.deeper(x)
        x = self.two(self.between(self.norm(x)))
        x = {"plain": x, "add": x + torch.tanh(x), "mul": x * torch.tanh(x)}[self.way]
        y = self.three(x)
        return torch.relu({"plain": y, "add": y + x, "mul": y * x}[self.way])


def images(channels: int = 3) -> Tensor:
    return torch.zeros(2, channels, 12, 12)


def moved(donor: nn.Module, recipient: nn.Module, x: Tensor, **options: Any) -> surgery.Outcome:
    return surgery.transplant(
        donor.eval(),
        recipient.eval(),
        match="graph",
        example=x,
        registry=NOTHING,
        **{"min_coverage": 0.3, **options},
    )


def note_of(outcome: surgery.Outcome, beginning: str) -> str:
    return next((n for n in outcome.plan.notes if n.startswith(beginning)), "")


STEMS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "channels": ({"channels": 1}, {"channels": 3}),
    "kernel": ({"kernel": 3}, {"kernel": 5}),
    "stem and head": ({"kernel": 3, "classes": 5}, {"kernel": 5, "classes": 7}),
}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", STEMS)
def test_what_stands_behind_another_stem_goes_over_and_is_proven(name: str, back: bool):
    one, other = reversed(STEMS[name]) if back else STEMS[name]
    donor, recipient = shaken(Network(**one)), Network(**other)
    before = contents(recipient)
    outcome = moved(donor, recipient, images(one.get("channels", 3)))
    ours, theirs = recipient.state_dict(), donor.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items() if k.startswith("body"))
    assert {k: v for k, v in before.items() if "stem" in k} == {
        k: v for k, v in contents(recipient).items() if "stem" in k
    }
    assert "stem (stem in the donor)" in note_of(outcome, "compared from there on")
    assert "body" not in note_of(outcome, "placed by the graphs alone")
    for side in ("donor", "recipient"):
        assert note_of(outcome, f"not aligned, of the {side}: stem.weight")
    outcome.undo()
    assert contents(recipient) == before


OTHERS: dict[str, dict[str, Any]] = {
    "activation behind the stem": {"first": functional.gelu},
    "activation in the middle": {"between": functional.gelu},
    "strides": {"strides": (2, 1)},
    "padding": {"pad": (0, 2, 0, 2)},
    "product": {"way": "mul"},
    "no way around": {"way": "plain"},
    "eps": {"eps": 1e-2},
}


# Where both the depth and the way are others, nothing is left that could be compared.
DEPTHS = [
    (name, deeper) for name in OTHERS for deeper in (False, True)[: 2 - ("way" in OTHERS[name])]
]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("name", "deeper"), DEPTHS)
def test_no_difference_gets_through_behind_another_stem(name: str, back: bool, deeper: bool):
    plain = Network(kernel=3, deeper=deeper)
    other = Network(kernel=5, **OTHERS[name])
    donor, recipient = (other, plain) if back else (plain, other)
    shaken(donor)
    before = contents(recipient)
    with pytest.raises(PlanError):
        moved(donor, recipient, images())
    assert contents(recipient) == before


@pytest.mark.parametrize("back", [False, True])
def test_a_layer_more_in_the_middle_is_left_out_and_the_rest_is_proven(back: bool):
    plain, other = Network(kernel=3), Network(kernel=5, deeper=True)
    donor, recipient = (other, plain) if back else (plain, other)
    outcome = moved(shaken(donor), recipient, images())
    assert "deeper" in note_of(outcome, "compared from there on")
    assert "body" not in note_of(outcome, "placed by the graphs alone")
    ours = recipient.state_dict()
    same = [k for k in ours if k.startswith("body") and "deeper" not in k]
    assert all(torch.equal(ours[k], donor.state_dict()[k]) for k in same)


class Towers(nn.Module):
    """Two stems and two bodies; what one makes is small."""

    def __init__(self, kernel: int, activation: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(3, 8, kernel, padding=kernel // 2) for _ in range(2))
        self.large, self.small = Body(), Body(between=activation)
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.large(self.left(x)), self.small(self.right(x)) * self.scale


@pytest.mark.parametrize("scale", [1.0, 1e-13])
def test_every_region_is_compared_by_itself(scale: float):
    donor, recipient = Towers(3, functional.relu, scale), Towers(5, functional.gelu, scale)
    with pytest.raises(PlanError):
        moved(shaken(donor), recipient, images())
    outcome = moved(donor, Towers(5, functional.relu, scale), images())
    told = note_of(outcome, "placed by the graphs alone")
    assert ("small.two.weight" in told) is (scale < 1)
    assert "large" not in told


def test_too_little_in_common_is_refused():
    donor, recipient = Network(kernel=3), Network(kernel=5)
    with pytest.raises(CoverageError):
        moved(donor, recipient, images(), min_coverage=0.99)


def test_settings_are_taken_over_behind_another_stem():
    donor, recipient = shaken(Network(kernel=3, eps=1e-2)), Network(kernel=5)
    with pytest.raises(PlanError, match="computes something else"):
        moved(donor, recipient, images())
    moved(donor, recipient, images(), differences="set")
    assert recipient.body.norm.eps == 1e-2


class Stemmed(nn.Module):
    """A layer in front of a whole network."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.inner = nn.Conv2d(3, 3, 1), Network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.extra(x))


@pytest.mark.parametrize("back", [False, True])
def test_a_layer_in_front_of_everything_is_left_out(back: bool):
    plain, stemmed = Network(), Stemmed()
    donor, recipient = (stemmed, plain) if back else (plain, stemmed)
    outcome = moved(shaken(donor), recipient, images())
    inner, whole = stemmed.inner.state_dict(), plain.state_dict()
    assert all(torch.equal(inner[name], whole[name]) for name in whole)
    assert "extra" in note_of(outcome, "compared from there on")
    assert not note_of(outcome, "placed by the graphs alone")
