"""A correspondence as a value: the way back, and what it makes of a checkpoint."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import surgery
from surgery.errors import AddressError, CoverageError, PartialLoadWarning, PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import PAIRS, contents, pair_of, shaken

NOTHING = Registry.of()


@pytest.mark.parametrize("name", PAIRS)
def test_the_way_back_and_back_again_is_the_way_there(name: str):
    donor, recipient, x = pair_of(name)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    assert found.inverse().inverse() == found


@pytest.mark.parametrize("name", PAIRS)
def test_the_way_back_is_what_aligning_the_other_way_finds(name: str):
    donor, recipient, x = pair_of(name)
    turned = surgery.align(donor, recipient, example=x, registry=NOTHING).inverse()
    back = surgery.align(recipient, donor, example=x, registry=NOTHING)
    assert set(turned.pairs) == set(back.pairs)
    assert set(turned.filled) == set(back.filled)
    assert turned.donor_only == back.donor_only
    assert turned.recipient_only == back.recipient_only
    assert turned.coverage == back.coverage


@pytest.mark.parametrize("name", PAIRS)
def test_a_checkpoint_goes_there_and_back_unchanged(name: str):
    donor, recipient, x = pair_of(name)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    state = donor.state_dict()
    again = found.inverse().convert(found.convert(state))
    assert again.keys() <= state.keys()
    assert again.keys() == set(found.inverse().filled) - {
        pair.donor for pair in found.pairs if pair.donor not in state
    }
    for name, tensor in again.items():
        assert torch.equal(tensor, state[name]), name


def biased(first: bool) -> nn.Module:
    return shaken(nn.Sequential(nn.Linear(3, 4, bias=first), nn.Tanh(), nn.Linear(4, 2)))


def test_a_bias_that_the_donor_has_not_becomes_zeros():
    donor, recipient, x = biased(False), biased(True), torch.randn(2, 3)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    assert not found.donor_only
    assert not found.recipient_only
    surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert torch.equal(recipient[0].bias, torch.zeros(4))
    assert torch.equal(found.convert(donor.state_dict())["0.bias"], torch.zeros(4))
    [left] = found.inverse().donor_only
    assert str(left) == "0.bias (4,): the other model has zeros in its place"
    assert not found.inverse().recipient_only
    assert found.inverse().inverse() == found


def test_a_bias_that_the_recipient_has_not_must_be_zeros():
    donor, recipient, x = biased(True), biased(False), torch.randn(2, 3)
    before = recipient[0].weight.clone()
    with pytest.raises(PlanError, match="computes something else"):
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert torch.equal(recipient[0].weight, before)


@pytest.mark.parametrize("kind", ["dict", "pth", "safetensors", "model"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_checkpoint_loaded_by_it_is_what_the_transplant_brings(
    name: str, kind: str, tmp_path: Path
):
    donor, recipient, x = pair_of(name)
    twin = copy.deepcopy(recipient)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    surgery.transplant(donor, twin, match="graph", example=x, registry=NOTHING, differences="set")
    source: object = {"dict": donor.state_dict(), "model": donor}.get(kind)
    if kind == "pth":
        source = tmp_path / "donor.pth"
        torch.save({"state_dict": donor.state_dict(), "epoch": 3}, source)
    elif kind == "safetensors":
        source = tmp_path / "donor.safetensors"
        save_file(donor.state_dict(), source)
    outcome = surgery.load_weights(recipient, source, rename=found, registry=NOTHING)
    assert contents(recipient).keys() == contents(twin).keys()
    for address, tensor in twin.state_dict().items():
        assert torch.equal(recipient.state_dict()[address], tensor), address
    outcome.undo()


def test_what_has_no_place_is_said_and_stays_away():
    """The donor's head has the name of another tensor of the recipient, and must not go there."""
    donor = nn.Sequential(OrderedDict(body=nn.Linear(3, 4), act=nn.Tanh(), head=nn.Linear(4, 4)))
    recipient = nn.Sequential(OrderedDict(head=nn.Linear(3, 4), act=nn.Tanh(), fc=nn.Linear(4, 2)))
    found = surgery.align(donor, recipient, example=torch.randn(2, 3), registry=NOTHING)
    before = recipient.fc.weight.clone()
    with pytest.warns(PartialLoadWarning):
        outcome = surgery.load_weights(
            recipient, donor.state_dict(), rename=found, registry=NOTHING
        )
    assert torch.equal(recipient.head.weight, donor.body.weight)
    assert torch.equal(recipient.fc.weight, before)
    assert any("no place in Sequential: head.weight" in note for note in outcome.plan.notes)
    assert outcome.plan.matching.missing


def test_too_little_in_common_is_refused_for_files_too():
    donor = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
    recipient = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = surgery.align(donor, recipient, example=torch.randn(2, 3), registry=NOTHING)
    before = contents(recipient)
    with pytest.raises(CoverageError, match="50% of the tensors have a counterpart"):
        surgery.load_weights(
            recipient, donor.state_dict(), rename=found, min_coverage=0.9, registry=NOTHING
        )
    assert contents(recipient) == before


def test_a_checkpoint_of_another_model_is_refused():
    donor, recipient, x = pair_of("packed attention")
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    before = contents(recipient)
    state = donor.state_dict()
    lacking = {name: tensor for name, tensor in state.items() if "out_proj" not in name}
    wider = {**state, "attention.in_proj_weight": torch.zeros(48, 8)}
    for wrong, error, said in (
        (lacking, AddressError, "the checkpoint lacks 2 of 4 tensors"),
        (wider, PlanError, "another shape than the donor"),
    ):
        with pytest.raises(error, match=said):
            surgery.load_weights(recipient, wrong, rename=found, registry=NOTHING)
        with pytest.raises(error, match=said):
            found.convert(wrong)
    assert contents(recipient) == before


def test_tables_that_no_file_has_are_no_hindrance(tmp_path: Path):
    """Models of text keep positions as buffers that are not saved."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(intermediate_size=32, vocab_size=30, **sizes)
    donor, recipient = transformers.BertModel(config), transformers.BertModel(config)
    ids = torch.zeros(1, 6, dtype=torch.int64)
    found = surgery.align(donor, recipient, example=ids, registry=NOTHING)
    donor.save_pretrained(tmp_path)
    surgery.load_weights(recipient, tmp_path / "model.safetensors", rename=found, registry=NOTHING)
    for name, tensor in donor.state_dict().items():
        assert torch.equal(recipient.state_dict()[name], tensor), name
    assert found.rename.keys() == donor.state_dict().keys()
    surgery.load_weights(recipient, tmp_path, rename=found.rename, registry=NOTHING)
