"""What equal outputs do not prove: shut branches, dead and exploding signals, single precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from surgery.operations import trial
from tests.operations.aligned import contents, images, shaken

NOTHING = Registry.of()
ROW = torch.randn(2, 4)


def brought(donor: nn.Module, recipient: nn.Module, x: Tensor, **options: str) -> list[str]:
    """What a transplant says about itself."""
    outcome = surgery.transplant(
        donor.eval(),
        recipient.eval(),
        match="graph",
        example=x,
        registry=NOTHING,
        **options,  # type: ignore[arg-type]
    )
    return list(outcome.plan.notes)


class Closed(nn.Module):
    """A branch behind a gate that is a buffer, and shut; or a number in the code, and small."""

    def __init__(self, activation: Callable[[Tensor], Tensor], gate: float | None = None) -> None:
        super().__init__()
        self.stem, self.branch, self.out = (nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("gate", torch.zeros(()))
        self.activation, self.number = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.gate if self.number is None else self.number
        return self.out(x + self.activation(self.branch(x)) * gate)


@pytest.mark.parametrize("gate", [None, 1e-13])
def test_a_shut_branch_hides_no_other_operation(gate: float | None):
    donor, recipient = Closed(functional.relu, gate), Closed(torch.tanh, gate)
    before = contents(recipient)
    with pytest.raises(PlanError, match="prove nothing") as caught:
        brought(donor, recipient, ROW)
    assert "relu" in str(caught.value)
    assert "tanh" in str(caught.value)
    assert contents(recipient) == before


@pytest.mark.parametrize("gate", [None, 1e-13])
def test_what_no_output_tells_is_said_to_be_placed_by_the_graphs(gate: float | None):
    donor, recipient = Closed(functional.relu, gate), Closed(functional.relu, gate)
    (note,) = (n for n in brought(donor, recipient, ROW) if "the graphs alone" in n)
    assert "branch.weight, branch.bias" in note
    assert "stem" not in note
    assert torch.equal(recipient.branch.weight, donor.branch.weight)


class Attends(nn.Module):
    """Attention: the bias of the keys is the same for all of them, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class AttendsByHand(Attends):
    """The same, written out."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.query(x) @ self.key(x).transpose(-1, -2) / 2
        return weights.softmax(-1) @ self.value(x)


def test_a_bias_without_effect_is_no_reason_to_refuse():
    (note,) = (
        note
        for note in brought(Attends(), AttendsByHand(), torch.randn(2, 5, 4))
        if "the graphs alone" in note
    )
    assert note.endswith(": key.bias")


def test_sigmoids_do_not_stifle_the_proof():
    def network() -> nn.Module:
        layers = [nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()) for _ in range(16)]
        return nn.Sequential(*layers)

    assert any(note.startswith("proven: ") for note in brought(network(), network(), ROW))


class Squares(nn.Module):
    """Numbers that grow beyond all bounds, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        for _ in range(12):
            x = x * x + 2
        return x


def test_a_signal_that_explodes_is_said_to_prove_nothing():
    with pytest.raises(PlanError, match="could not be told: with"):
        brought(Squares(), Squares(), ROW)


def test_values_that_are_no_numbers_are_found_in_the_donor():
    donor, recipient = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)) for _ in "ab")
    donor[0].weight.data[0, 0] = torch.nan
    with pytest.raises(PlanError, match="the donor's own weights there come out values"):
        brought(donor, recipient, ROW)


def normalised(eps: float) -> nn.Module:
    return shaken(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )


def test_single_precision_does_not_hide_a_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "free_memory", lambda device: 0)
    donor, recipient = normalised(1e-7), normalised(2e-7)
    with pytest.raises(PlanError, match="single precision hides it") as caught:
        brought(donor, recipient, images(4))
    assert "eps: 1e-07 in the donor" in str(caught.value)
    notes = brought(donor, recipient, images(4), differences="set")
    assert any("in float32" in note for note in notes)
    assert recipient[1].eps == 1e-7


def test_the_statistics_of_random_weights_are_near_what_they_normalise():
    """Thirty blocks of another form: with other statistics each would double the signal."""

    def network(eps: float) -> nn.Module:
        blocks = [
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps), nn.Hardsigmoid())
            for _ in range(30)
        ]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(48, 2)).eval()

    donor, recipient = network(1e-3), network(1e-5)
    for model in (donor, recipient):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.running_mean, 100.0)
    with pytest.raises(PlanError) as caught:
        brought(donor, recipient, images(4))
    assert "eps" in str(caught.value)


class Table(nn.Module):
    """A constant table that is added."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4) * scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.table


def test_another_constant_table_is_refused():
    brought(Table(1), Table(1), ROW)
    recipient = Table(2)
    before = contents(recipient)
    with pytest.raises(PlanError, match="computes something else"):
        brought(Table(1), recipient, ROW)
    assert contents(recipient) == before


class Caches(nn.Module):
    """It keeps what it made of its weights, until it is trained again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Caches:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if "weight" not in self.kept:
            self.kept["weight"] = self.two.weight.detach().relu()
        return functional.linear(torch.tanh(self.one(x)), self.kept["weight"])


def test_a_donor_that_has_run_before_is_a_donor_like_any_other():
    donor, recipient = Caches().eval(), Caches().eval()
    wanted = donor(ROW)
    assert donor.kept
    brought(donor, recipient, ROW)
    assert donor.kept
    assert torch.allclose(recipient(ROW), wanted, atol=1e-6)


def test_a_recipient_that_keeps_what_its_old_weights_made_is_named():
    donor, recipient = Caches(), Caches().eval()
    recipient(ROW)
    with pytest.raises(PlanError, match="keeps of its old weights") as caught:
        brought(donor, recipient, ROW)
    assert "train().eval()" in str(caught.value)
    recipient.train()
    brought(donor, recipient, ROW)
    assert torch.allclose(recipient(ROW), donor(ROW), atol=1e-6)


class Shared(nn.Module):
    """Two places for one weight, or for two."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def test_one_weight_can_go_to_two_places_and_two_never_into_one():
    donor, recipient = Shared(tied=True), Shared(tied=False)
    brought(donor, recipient, ROW)
    assert torch.equal(recipient.one.weight, recipient.two.weight)
    before = contents(donor)
    nn.init.normal_(recipient.two.weight)
    with pytest.raises(PlanError):
        brought(recipient, donor, ROW)
    assert contents(donor) == before


class Around(nn.Module):
    """Layers with a way around one of them, or a gate, or nothing of the kind."""

    def __init__(self, way: str, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.body, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, classes)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.tanh(self.stem(x))
        body = torch.tanh(self.body(stem))
        body = {"plain": body, "add": body + stem, "mul": body * stem, "deep": body + x}[self.way]
        return self.head(torch.tanh(self.last(body)))


@pytest.mark.parametrize("classes", [5, 7])
@pytest.mark.parametrize(
    ("one", "other"),
    [("add", "plain"), ("plain", "add"), ("add", "mul"), ("mul", "plain"), ("add", "deep")],
)
def test_another_way_through_the_same_layers_is_refused(one: str, other: str, classes: int):
    donor, recipient = Around(one), Around(other, classes)
    before = contents(recipient)
    with pytest.raises(PlanError, match="go on in different ways") as caught:
        brought(donor, recipient, ROW)
    assert {"add", "mul"} & set(caught.value.found.split())  # type: ignore[union-attr]
    assert contents(recipient) == before


@pytest.mark.parametrize("way", ["plain", "add", "mul", "deep"])
def test_the_same_way_to_another_head_is_none(way: str):
    donor, recipient = Around(way), Around(way, 7)
    notes = brought(donor, recipient, ROW)
    assert not any("the graphs alone" in note for note in notes)
    assert torch.equal(recipient.last.weight, donor.last.weight)


def test_the_groups_of_a_normalisation_are_named():
    one, other = (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(n, 8)) for n in (2, 4))
    with pytest.raises(PlanError, match=r"group: 2 in the donor \(1\), 4 in the recipient"):
        brought(one, other, images(6))


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), "ceil_mode: False"),
        (nn.Hardtanh(0, 100), nn.Hardtanh(0, 90), "max_val: 100"),
    ],
    ids=["ceil_mode", "max_val"],
)
def test_a_setting_that_this_example_does_not_show_is_said(
    one: nn.Module, other: nn.Module, named: str
):
    donor, recipient = (nn.Sequential(nn.Conv2d(3, 4, 1), each) for each in (one, other))
    notes = brought(donor, recipient, images(6))
    assert any("does not show it" in note and named in note for note in notes)
    assert not any("does not show it" in n for n in brought(donor, donor_like(donor), images(6)))


def donor_like(donor: nn.Module) -> nn.Module:
    """Another model of the same layers."""
    return shaken(copy.deepcopy(donor))


def test_a_recipient_without_memory_is_refused():
    donor, recipient = nn.Linear(4, 4), nn.Linear(4, 4, device="meta")
    with pytest.raises(PlanError, match="on meta"):
        brought(donor, recipient, ROW)


@pytest.mark.parametrize("precisions", [(torch.float16, None), (None, torch.bfloat16)])
def test_weights_in_another_precision_are_aligned_and_rounded(
    precisions: tuple[torch.dtype | None, torch.dtype | None],
):
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))

    donor, recipient = (network().to(precision) for precision in precisions)
    outcome = surgery.transplant(donor, recipient, match="graph", example=torch.zeros(2, 4))
    for one, other in zip(donor.parameters(), recipient.parameters(), strict=True):
        assert torch.equal(one.to(other.dtype), other)
    assert outcome.plan.notes[0].startswith("proven")
