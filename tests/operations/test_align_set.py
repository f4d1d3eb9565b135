"""Settings that become the donor's where a transplant by graph is asked for that."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import contents, images, shaken

NOTHING = Registry.of()
MODES = ("zeros", "reflect", "replicate", "circular")


def padded(mode: str, first: nn.Module | None = None) -> nn.Module:
    conv = nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode=mode)
    return shaken(nn.Sequential(first or nn.Identity(), conv, nn.ReLU(), nn.Conv2d(4, 4, 1)))


def layers(*made: nn.Module) -> nn.Module:
    return shaken(nn.Sequential(nn.Conv2d(3, 4, 1), *made, nn.Conv2d(4, 4, 1)))


Made = Callable[[], nn.Module]
SETTINGS: dict[str, tuple[Made, Made, dict[str, object]]] = {
    **{
        f"padding {one} {other}": (
            lambda one=one: padded(one),
            lambda other=other: padded(other),
            {"1.padding_mode": one},
        )
        for one, other in (
            *((mode, "zeros") for mode in MODES[1:]),
            *itertools.pairwise(MODES),
        )
    },
    "padding behind a layer": (
        lambda: padded("reflect", nn.Conv2d(3, 3, 1)),
        lambda: padded("zeros", nn.Conv2d(3, 3, 1)),
        {"1.padding_mode": "reflect"},
    ),
    "padding in a layer of its own": (
        lambda: layers(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3)),
        lambda: layers(nn.Identity(), nn.Conv2d(4, 4, 3, padding=1)),
        {"2.padding_mode": "reflect"},
    ),
    "eps of batch normalisation": (
        lambda: layers(nn.BatchNorm2d(4, eps=1e-3)),
        lambda: layers(nn.BatchNorm2d(4)),
        {"1.eps": 1e-3},
    ),
    "eps of layer normalisation": (
        lambda: layers(nn.LayerNorm(5, eps=1e-3)),
        lambda: layers(nn.LayerNorm(5)),
        {"1.eps": 1e-3},
    ),
    "form of an activation": (
        lambda: layers(nn.GELU("tanh")),
        lambda: layers(nn.GELU()),
        {"1.approximate": "tanh"},
    ),
    "slope": (
        lambda: layers(nn.LeakyReLU(0.2)),
        lambda: layers(nn.LeakyReLU(0.1)),
        {"1.negative_slope": 0.2},
    ),
    "stride": (
        lambda: layers(nn.Conv2d(4, 4, 3, stride=2, padding=1)),
        lambda: layers(nn.Conv2d(4, 4, 3, padding=1)),
        {"1.stride": (2, 2)},
    ),
    "groups of a normalisation": (
        lambda: layers(nn.GroupNorm(2, 4)),
        lambda: layers(nn.GroupNorm(4, 4)),
        {"1.num_groups": 2},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_an_attribute_becomes_the_donors(name: str):
    one, other, wanted = SETTINGS[name]
    donor, recipient, x = one(), other(), images(5)
    before = [contents(recipient), *(recipient.get_submodule(a[0]).__dict__ for a in wanted)]
    given = {"match": "graph", "example": x, "registry": NOTHING}
    with pytest.raises(PlanError) as caught:
        surgery.transplant(donor, recipient, **given)
    for address in wanted:
        assert address[2:].removeprefix("num_").rstrip("s") in str(caught.value)
    outcome = surgery.transplant(donor, recipient, differences="set", **given)
    for address, value in wanted.items():
        assert getattr(recipient.get_submodule(address[0]), address[2:]) == value
        assert any(f"set as in the donor: {address} " in note for note in outcome.plan.notes)
    with torch.no_grad():
        assert torch.allclose(donor(x), recipient(x), rtol=1e-4, atol=1e-5)
    outcome.undo()
    assert contents(recipient) == before[0]
    with pytest.raises(PlanError):
        surgery.transplant(donor, recipient, **given)


def test_a_layer_of_its_own_and_an_attribute_are_one_padding():
    apart = layers(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3))
    inside = layers(nn.Identity(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    for donor, recipient in ((apart, inside), (inside, apart)):
        found = surgery.align(donor, recipient, example=images(5), registry=NOTHING)
        assert "padding_mode" not in {each.name for each in found.differences}
        surgery.transplant(donor, recipient, match="graph", example=images(5), registry=NOTHING)


def test_what_is_no_attribute_stays_refused():
    donor = layers(nn.Identity(), nn.Conv2d(4, 4, 3, padding=1))
    recipient = layers(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3))
    before = contents(recipient)
    with pytest.raises(PlanError, match="padding_mode: zeros in the donor"):
        surgery.transplant(
            donor,
            recipient,
            match="graph",
            differences="set",
            example=images(5),
            registry=NOTHING,
        )
    assert contents(recipient) == before


def test_nothing_is_offered_to_be_set_that_cannot_be():
    donor = layers(nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(4, 4, 3, stride=2))
    recipient = layers(nn.Identity(), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    given = {"match": "graph", "example": images(6), "registry": NOTHING}
    for one, other in ((donor, recipient), (recipient, donor)):
        before = contents(other)
        for differences in ("refuse", "set"):
            with pytest.raises(PlanError, match="padding") as caught:
                surgery.transplant(one, other, differences=differences, **given)
            assert "constant_pad_nd(pad=(0, 2, 0, 2), value=0.0)" in str(caught.value)
            assert "differences='set'" not in str(caught.value)
        assert contents(other) == before


def test_what_was_set_is_no_reason_any_more():
    def network(eps: float, way: nn.Module) -> nn.Module:
        return layers(nn.BatchNorm2d(4, eps=eps), way)

    donor, recipient = network(1e-3, nn.Tanh()), network(1e-5, nn.Sigmoid())
    given = {"match": "graph", "example": images(5), "registry": NOTHING}
    with pytest.raises(PlanError, match=r"found: 1 batch_norm eps: 0\.001 in the donor"):
        surgery.transplant(donor, recipient, **given)
    with pytest.raises(PlanError, match=r"found: 2: tanh\(\) in the donor \(2\), sigmoid"):
        surgery.transplant(donor, recipient, differences="set", **given)
