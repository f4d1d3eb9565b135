"""Checkpoints that a correspondence is to bring over: wrapped, cut down, of another model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import AddressError, PartialLoadWarning, PlanError, SurgeryError
from surgery.families.registry import Registry
from tests.operations.aligned import PAIRS, PlainAttention, contents, pair_of

NOTHING = Registry.of()


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net.", "module._orig_mod."])
@pytest.mark.parametrize("name", PAIRS)
def test_prefixes_of_wrappers_are_taken_off_as_in_any_loading(name: str, prefix: str):
    donor, recipient, x = pair_of(name)
    twin = copy.deepcopy(recipient)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    state = donor.state_dict()
    surgery.load_weights(twin, state, rename=found, registry=NOTHING)
    surgery.load_weights(recipient, wrapped(state, prefix), rename=found, registry=NOTHING)
    assert contents(recipient) == contents(twin)
    plain, bare = found.convert(wrapped(state, prefix)), found.convert(state)
    assert plain.keys() == bare.keys()
    assert all(torch.equal(plain[address], bare[address]) for address in bare)


@pytest.mark.parametrize("inside", ["state_dict", "model"])
def test_what_a_training_script_saved_is_opened(inside: str, tmp_path: Path):
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    file = tmp_path / "last.pth"
    compiled = nn.DataParallel(donor).state_dict()
    torch.save({inside: compiled, "epoch": 3, "optimizer": {"state": {}}}, file)
    outcome = surgery.load_weights(recipient, file, rename=found, registry=NOTHING)
    assert torch.equal(recipient.get_parameter("out.bias"), donor.attention.out_proj.bias)
    assert "'module.' taken off the source's keys" in outcome.plan.notes


def test_two_copies_in_one_file_are_told_apart_by_dropping_one():
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    state = donor.state_dict()
    both = wrapped(state, "student.") | {f"teacher.{k}": v + 1 for k, v in state.items()}
    with pytest.raises(PlanError, match="two parts of the source fit"):
        surgery.load_weights(recipient, both, rename=found, registry=NOTHING)
    surgery.load_weights(recipient, both, rename=found, drop="teacher", registry=NOTHING)
    assert torch.equal(recipient.get_parameter("out.bias"), donor.attention.out_proj.bias)


def test_what_is_dropped_on_either_side_stays_as_it_is():
    donor, recipient, x = pair_of("blocks")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    head = recipient.get_parameter("classify.weight").clone()
    for drop in ("head", "classify"):
        fresh = copy.deepcopy(recipient)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialLoadWarning)
            surgery.load_weights(
                fresh, donor.state_dict(), rename=found, drop=drop, registry=NOTHING
            )
        assert torch.equal(fresh.get_parameter("classify.weight"), head)
        assert torch.equal(fresh.get_parameter("convs.1.weight"), donor.stem.weight)
    with pytest.raises(SurgeryError, match="no key of the source or of the model"):
        surgery.load_weights(
            recipient, donor.state_dict(), rename=found, drop="nowhere", registry=NOTHING
        )


def test_a_checkpoint_of_the_recipient_itself_is_told_from_a_strangers():
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    own = wrapped(recipient.state_dict(), "module.")
    with pytest.raises(AddressError, match="recipient's own") as caught:
        surgery.load_weights(recipient, own, rename=found, registry=NOTHING)
    assert "correspondence.inverse()" in str(caught.value)
    surgery.load_weights(donor, own, rename=found.inverse(), registry=NOTHING)
    with pytest.raises(AddressError, match="lacks 4 of 4 tensors"):
        surgery.load_weights(recipient, {"a": torch.zeros(3)}, rename=found, registry=NOTHING)


class Wider(PlainAttention):
    """The same with more outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 10)


class Renamed(PlainAttention):
    """The same in another class."""


def loaded(model: nn.Module, **options: Any) -> surgery.Outcome:
    torch.manual_seed(0)
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    before = contents(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialLoadWarning)
            return surgery.load_weights(
                model, donor.state_dict(), rename=found, registry=NOTHING, **options
            )
    except SurgeryError:
        assert contents(model) == before
        raise


def test_a_model_that_was_not_aligned_is_refused():
    stranger = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 9))
    with pytest.raises(PlanError, match="made for another model: 8 of 8") as caught:
        loaded(stranger)
    assert "query.weight (no such tensor)" in str(caught.value)
    assert "surgery.align(donor, model)" in str(caught.value)
    assert "drop" not in str(caught.value)


def test_another_shape_is_refused_unless_something_was_said_of_it():
    with pytest.raises(PlanError, match="2 of 8 tensors") as caught:
        loaded(Wider())
    assert "out.weight (10, 8), and (8, 8) in PlainAttention" in str(caught.value)
    assert "drop='out.weight'" in str(caught.value)
    kept = Wider()
    before = kept.out.weight.clone()
    loaded(kept, drop="out")
    assert torch.equal(kept.out.weight, before)
    loaded(Wider(), on_mismatch=lambda address, theirs, ours: None)


def test_another_class_with_the_same_tensors_is_said():
    notes = loaded(Renamed()).plan.notes
    assert "Renamed has the tensors of PlainAttention" in notes
    assert not any("has the tensors of" in note for note in loaded(PlainAttention()).plan.notes)


def test_the_wrong_way_round_is_named():
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    with pytest.raises(PlanError, match=r"rename=correspondence.inverse\(\)"):
        surgery.load_weights(donor, recipient.state_dict(), rename=found, registry=NOTHING)


class Words(nn.Module):
    """Embeddings, and an output that shares their weight or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(self.words(ids))))


IDS = torch.arange(10).view(2, 5)


def test_a_tied_donor_fills_both_of_an_untied_recipient_and_says_so(tmp_path: Path):
    donor, recipient = Words(True), Words(False)
    outcome = surgery.transplant(donor, recipient, match="graph", example=IDS, registry=NOTHING)
    (note,) = (n for n in outcome.plan.notes if "training moves them apart" in n)
    assert "words.weight and out.weight get the same values" in note
    assert torch.allclose(recipient(IDS), donor(IDS), atol=1e-6)
    found = surgery.align(donor, fresh := Words(False), example=IDS, registry=NOTHING)
    surgery.load_weights(fresh, donor.state_dict(), rename=found, registry=NOTHING)
    assert torch.equal(fresh.out.weight, donor.out.weight)


def test_a_tied_checkpoint_with_two_values_is_refused():
    donor, recipient = Words(True), Words(False)
    found = surgery.align(donor, recipient, example=IDS, registry=NOTHING)
    state = {name: tensor.clone() for name, tensor in donor.state_dict().items()}
    surgery.load_weights(recipient, state, rename=found, registry=NOTHING)
    state["out.weight"] += 1
    with pytest.raises(PlanError, match="two different tensors of the source"):
        surgery.load_weights(recipient, state, rename=found, registry=NOTHING)


def test_an_untied_donor_does_not_fit_into_one_tensor_and_the_way_out_is_shown():
    donor, recipient = Words(False), Words(True)
    before = contents(recipient)
    found = surgery.align(donor, recipient, example=IDS, registry=NOTHING)
    assert found.torn == {"words.weight": ("words.weight", "out.weight")}

    def by_graph() -> None:
        surgery.transplant(donor, recipient, match="graph", example=IDS, registry=NOTHING)

    def by_file() -> None:
        surgery.load_weights(recipient, donor.state_dict(), rename=found, registry=NOTHING)

    for attempt in (by_graph, by_file):
        with pytest.raises(PlanError, match="the recipient ties what the donor has apart") as error:
            attempt()
        assert "words.weight = out.weight of Words" in str(error.value)
    assert contents(recipient) == before
    # Either of the two steps that it shows.
    donor.get_submodule("out").weight = donor.get_submodule("words").weight
    by_graph()
    other = Words(False)
    recipient.get_submodule("out").weight = torch.nn.Parameter(
        recipient.get_submodule("words").weight.detach().clone()
    )
    surgery.transplant(other, recipient, match="graph", example=IDS, registry=NOTHING)
    assert torch.equal(recipient.out.weight, other.out.weight)


def test_ties_on_both_sides_stay_ties():
    donor, recipient = Words(True), Words(True)
    surgery.transplant(donor, recipient, match="graph", example=IDS, registry=NOTHING)
    assert recipient.out.weight is recipient.words.weight
    assert torch.equal(recipient.out.weight, donor.out.weight)
    found = surgery.align(donor, recipient, example=IDS, registry=NOTHING)
    assert not found.torn
    assert found.inverse().inverse() == found
