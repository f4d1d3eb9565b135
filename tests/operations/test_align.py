"""Two implementations of one architecture: found in each other, brought over, proven, undone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import ArgumentError, CoverageError, PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import PAIRS, contents, images, pair_of, shaken

NOTHING = Registry.of()


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_weights_go_from_either_implementation_to_the_other(name: str, back: bool):
    donor, recipient, x = pair_of(name)
    if back:
        donor, recipient = recipient, donor
    before = contents(donor), contents(recipient)
    outcome = surgery.transplant(
        donor, recipient, match="graph", example=x, registry=NOTHING, differences="set"
    )
    assert torch.allclose(outputs(donor, x), outputs(recipient, x), rtol=1e-4, atol=1e-5)
    assert contents(donor) == before[0]
    outcome.undo()
    assert contents(recipient) == before[1]


@pytest.mark.parametrize("name", PAIRS)
def test_a_correspondence_is_the_same_from_both_sides(name: str):
    donor, recipient, x = pair_of(name)
    there = surgery.align(donor, recipient, example=x, registry=NOTHING)
    back = surgery.align(recipient, donor, example=x, registry=NOTHING)

    def places(found: surgery.Correspondence) -> set[tuple[object, ...]]:
        return {(p.theirs, p.ours) for p in found.pairs if p.donor}

    assert places(there.inverse()) == places(back)
    assert places(there.inverse().inverse()) == places(there)


@pytest.mark.parametrize("name", PAIRS)
def test_a_converted_checkpoint_is_what_the_transplant_brings(name: str):
    donor, recipient, x = pair_of(name)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    converted = found.convert(donor.state_dict())
    surgery.transplant(
        donor, recipient, match="graph", example=x, registry=NOTHING, differences="set"
    )
    state = {**dict(recipient.named_parameters()), **dict(recipient.named_buffers())}
    assert converted.keys() == set(found.filled)
    for address, tensor in converted.items():
        assert torch.equal(tensor, state[address]), address


def test_the_renaming_serves_load_weights():
    donor, recipient, x = pair_of("blocks")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    surgery.load_weights(recipient, donor.state_dict(), rename=found.rename, registry=NOTHING)
    assert torch.allclose(outputs(donor, x), outputs(recipient, x), atol=1e-6)


def test_what_is_proven_is_said():
    donor, recipient, x = pair_of("blocks")
    outcome = surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert any(note.startswith("proven: largest difference") for note in outcome.plan.notes)
    assert "largest difference" in str(outcome)


def test_a_dry_run_touches_nothing():
    donor, recipient, x = pair_of("packed attention")
    before = contents(donor), contents(recipient)
    outcome = surgery.transplant(
        donor, recipient, match="graph", example=x, registry=NOTHING, dry_run=True
    )
    assert outcome.plan.steps
    assert (contents(donor), contents(recipient)) == before


def test_another_eps_is_named_refused_and_set_where_asked():
    donor, recipient, x = pair_of("blocks")
    for module in recipient.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.25
    before = contents(recipient)
    with pytest.raises(PlanError, match="computes something else") as caught:
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert "eps" in str(caught.value)
    assert "0.25" in str(caught.value)
    assert "1e-05" in str(caught.value)
    assert contents(recipient) == before
    outcome = surgery.transplant(
        donor, recipient, match="graph", example=x, registry=NOTHING, differences="set"
    )
    assert torch.allclose(outputs(donor, x), outputs(recipient, x), atol=1e-5)
    outcome.undo()
    assert contents(recipient) == before


def test_another_activation_is_named_and_never_brought_over():
    x = images(4)
    donor = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    recipient = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 1)))
    before = contents(recipient)
    for differences in ("refuse", "set"):
        with pytest.raises(PlanError) as caught:
            surgery.transplant(
                donor,
                recipient,
                match="graph",
                example=x,
                registry=NOTHING,
                differences=differences,  # type: ignore[arg-type]
            )
        assert "relu" in str(caught.value)
        assert "tanh" in str(caught.value)
    assert contents(recipient) == before


def test_another_padding_is_named():
    x = images(8)
    donor = shaken(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2)))
    recipient = shaken(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1)))
    with pytest.raises(PlanError) as caught:
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert "padding" in str(caught.value)


class Branches(nn.Module):
    """Two branches of one form: only the output tells which is which."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.one, self.two = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(depth)) for _ in range(2)
        )
        self.register_buffer("twice", torch.tensor(2.0))
        self.register_buffer("thrice", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, two in zip(self.one, self.two, strict=True):
            x = torch.tanh(one(x) * self.twice + two(x) * self.thrice)
        return x


class Swapped(Branches):
    """The same, in the other order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, two in zip(self.one, self.two, strict=True):
            tripled = two(x) * self.thrice
            x = torch.tanh(one(x) * self.twice + tripled)
        return x


def branches(kind: type[Branches], depth: int = 1) -> Branches:
    """Branches with random weights."""
    made = kind(depth)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.eval()


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_branches_that_look_the_same_are_tried_until_the_output_agrees(depth: int):
    donor, recipient, x = branches(Branches, depth), branches(Swapped, depth), torch.randn(2, 4)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    assert found.ambiguous == depth
    surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert torch.equal(recipient.one[0].weight, donor.one[0].weight)
    assert torch.allclose(outputs(donor, x), outputs(recipient, x), atol=1e-6)


def test_weights_that_hide_a_wrong_place_do_not_hide_it():
    """All zero, either way gives the donor's outputs; only random weights tell."""
    donor, recipient, x = Branches(), Swapped(), torch.randn(2, 4)
    for parameter in donor.parameters():
        nn.init.zeros_(parameter)
    surgery.transplant(donor, recipient, match="graph", how="share", example=x, registry=NOTHING)
    assert recipient.one[0].weight is donor.one[0].weight
    assert recipient.two[0].weight is donor.two[0].weight


def test_a_signal_that_dies_on_the_way_does_not_hide_another_padding():
    def network(padding: int, around: int) -> nn.Module:
        convs = [nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(8)]
        first = nn.Conv2d(3, 3, 3, stride=2, padding=padding, bias=False)
        pad = nn.ZeroPad2d((0, around, 0, around))
        return nn.Sequential(pad, first, *convs, nn.Flatten(), nn.Linear(48, 2)).eval()

    donor, recipient, x = network(0, 1), network(1, 0), torch.randn(1, 3, 8, 8)
    for layer in donor[1:-2]:
        layer.weight.data.mul_(1e-3)
    assert torch.allclose(outputs(donor, x), donor[-1].bias)
    with pytest.raises(PlanError, match="with random weights largest difference"):
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)


def test_another_head_leaves_the_head_alone():
    donor, recipient, x = pair_of("blocks")
    recipient.get_submodule("classify").__init__(6, 9)  # type: ignore[misc]
    head = recipient.get_parameter("classify.weight").clone()
    outcome = surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert torch.equal(recipient.get_parameter("classify.weight"), head)
    left = [note for note in outcome.plan.notes if note.startswith("not aligned")]
    assert any("classify.weight" in note for note in left)
    assert any("head.weight" in note for note in left)
    assert any("in the middle" in note for note in outcome.plan.notes)


def test_too_little_in_common_is_refused():
    donor, recipient, x = pair_of("blocks")
    recipient.get_submodule("classify").__init__(6, 9)  # type: ignore[misc]
    with pytest.raises(CoverageError, match="have a counterpart"):
        surgery.transplant(
            donor, recipient, match="graph", example=x, registry=NOTHING, min_coverage=1.0
        )


def test_strangers_are_refused():
    donor, recipient = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 1))
    with pytest.raises(PlanError):
        surgery.align(donor, recipient, example=images(4), registry=NOTHING)


def test_a_bias_that_fits_is_no_proof():
    donor, recipient = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1))
    before = contents(recipient)
    with pytest.raises(PlanError):
        surgery.transplant(
            donor,
            recipient,
            match="graph",
            example=images(4),
            registry=NOTHING,
            min_coverage=0,
        )
    assert contents(recipient) == before


WRONG = {
    "a checkpoint": {"donor": {"weight": torch.zeros(2, 2)}},
    "a mapping": {"mapping": {"0": "0"}},
    "allow": {"differences": "allow"},
    "a policy": {"on_mismatch": "skip"},
    "a share": {"min_coverage": 2},
    "set by address": {"match": "address", "differences": "set"},
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_cannot_be_right_are_refused(name: str):
    arguments = {"donor": nn.Linear(2, 2), "match": "graph", "example": torch.zeros(1, 2)}
    arguments |= WRONG[name]
    with pytest.raises(ArgumentError):
        surgery.transplant(recipient=nn.Linear(2, 2), registry=NOTHING, **arguments)


def test_a_correspondence_prints_and_is_json():
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    assert "rows 8 to 16" in str(found)
    written = json.loads(surgery.report(found, "json"))
    assert written["coverage"] == 1
    assert {pair["donor"] for pair in written["pairs"]} >= {"attention.in_proj_weight"}


@pytest.mark.parametrize("how", ["share", "move"])
def test_tensors_that_fit_as_they_are_can_be_shared_or_moved(how: str):
    donor, recipient, x = pair_of("blocks")
    wanted = outputs(donor, x)
    outcome = surgery.transplant(
        donor,
        recipient,
        match="graph",
        how=how,  # type: ignore[arg-type]
        example=x,
        registry=NOTHING,
    )
    assert torch.allclose(outputs(recipient, x), wanted, atol=1e-6)
    outcome.undo()
    assert torch.allclose(outputs(donor, x), wanted, atol=1e-6)


def test_zeros_prove_nothing():
    donor, recipient = (nn.Sequential(nn.Linear(3, 4), Closed(), nn.Linear(4, 2)) for _ in "ab")
    x = torch.randn(2, 3)
    for module in (donor, recipient):
        module[2].bias = None
    with pytest.raises(PlanError, match="the signal dies"):
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)


class Closed(nn.Module):
    """It lets nothing through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0
