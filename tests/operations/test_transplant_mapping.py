"""Patterns with captures: what goes where."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import AddressError
from surgery.operations.mapping import pairs_of
from tests.operations.test_transplant import Net, shaken

ADDRESSES = ["", "a", "a.0", "a.0.w", "a.0.b.w", "a.1", "a.1.w", "ab", "w"]


@pytest.mark.parametrize(
    ("pattern", "target", "expected"),
    [
        ("a.0", "x", {"a.0": "x"}),
        ("", "", {"": ""}),
        ("a.*", "x.*", {"a.0": "x.0", "a.1": "x.1"}),
        ("a.*.w", "*.x", {"a.0.w": "0.x", "a.1.w": "1.x"}),
        ("a*", "x*", {"a": "x", "ab": "xb"}),
        ("*.*.w", "x.*.y.*", {"a.0.w": "x.a.y.0", "a.1.w": "x.a.y.1"}),
        ("a.**.w", "x.**.w", {"a.0.w": "x.0.w", "a.0.b.w": "x.0.b.w", "a.1.w": "x.1.w"}),
        ("**.b.w", "**", {"a.0.b.w": "a.0"}),
        ("a.1.**", "**", {"a.1.w": "w"}),
        (
            "**.w",
            "**.v",
            {"w": "v", "a.0.w": "a.0.v", "a.0.b.w": "a.0.b.v", "a.1.w": "a.1.v"},
        ),
        ("**.w", "x.**.v", {"w": "x.v", "a.0.w": "x.a.0.v", "a.0.b.w": "x.a.0.b.v"}),
        ("**.w", "x.**", {"w": "x", "a.1.w": "x.a.1"}),
        ("a.*.**", "*.x.**", {"a.0.w": "0.x.w", "a.0.b.w": "0.x.b.w"}),
    ],
)
def test_what_wildcards_stand_for_fills_the_other_side(
    pattern: str, target: str, expected: dict[str, str]
):
    found, homeless = pairs_of({pattern: target}, ADDRESSES, set(expected.values()))
    sent = {pair.donor: pair.recipient for pair in (*found, *homeless)}
    assert expected.items() <= sent.items()
    assert {pair.donor: pair.recipient for pair in found} == expected


addresses = st.lists(st.text("ab0", min_size=1, max_size=2), min_size=1, max_size=4).map(".".join)


@given(st.sets(addresses, min_size=1), st.sampled_from(["*", "**", "a.*", "*.a", "**.b", "a.**"]))
def test_a_pattern_to_itself_is_the_identity(held: set[str], pattern: str):
    if pattern == "*":
        fitting = {a for a in held if "." not in a}
    elif pattern == "**":
        fitting = held
    else:
        parts = re.escape(pattern).replace(r"\*\*\.", r"(.+\.)?").replace(r"\*\*", ".+")
        fits = re.compile(parts.replace(r"\*", r"[^.]+"))
        fitting = {a for a in held if fits.fullmatch(a)}
    if not fitting:
        with pytest.raises(AddressError):
            pairs_of({pattern: pattern}, held, held)
        return
    found, homeless = pairs_of({pattern: pattern}, held, held)
    assert not homeless
    assert {(pair.donor, pair.recipient) for pair in found} == {(a, a) for a in fitting}


def test_renaming_and_back_is_the_identity():
    members = [(n, m) for n in range(3) for m in ("w", "b")]
    names, others = ([form.format(*m) for m in members] for form in ("blocks.{}.{}", "h.{}.x.{}"))
    there, _ = pairs_of({"blocks.*.*": "h.*.x.*"}, names, others)
    assert [pair.recipient for pair in there] == others
    back, _ = pairs_of({"h.*.x.*": "blocks.*.*"}, others, names)
    assert [pair.recipient for pair in back] == names


def test_what_was_swept_up_is_not_named():
    found, _ = pairs_of({"a.*": "a.*", "**": "**"}, ADDRESSES, ADDRESSES)
    assert {pair.donor for pair in found if pair.named} == {"a.0", "a.1"}


class Other(nn.Module):
    """Net under other names, with a container of another class."""

    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.entry = net.stem
        self.body = nn.ModuleDict({"layers": nn.ModuleList(net.encoder)})
        self.out = net.head


def test_all_of_a_model_goes_into_one_with_other_names():
    donor, recipient = shaken(Net()), Other()
    mapping = {"stem": "entry", "encoder.*": "body.layers.*", "head": "out"}
    surgery.transplant(donor, recipient, mapping)
    theirs = [value for _, value in donor.state_dict().items()]
    ours = [value for _, value in recipient.state_dict().items()]
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_containers_that_are_not_named_may_be_of_another_class():
    donor, recipient = shaken(Net()), Other()
    outcome = surgery.transplant(donor, recipient, {"encoder.**": "body.layers.**"})
    assert torch.equal(recipient.body["layers"][1][0].weight, donor.encoder[1][0].weight)
    assert not outcome.plan.notes
    with pytest.raises(surgery.errors.PlanError, match="equal shapes") as caught:
        surgery.transplant(donor, recipient, {"encoder": "body.layers"})
    assert "ModuleList in the recipient" in caught.value.found
