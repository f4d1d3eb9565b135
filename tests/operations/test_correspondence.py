"""A correspondence as a value: the way back, and what it makes of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import surgery
from surgery.families.registry import Registry
from tests.operations.aligned import PAIRS, pair_of, shaken

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
    with pytest.raises(surgery.errors.PlanError, match="computes something else"):
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert torch.equal(recipient[0].weight, before)
