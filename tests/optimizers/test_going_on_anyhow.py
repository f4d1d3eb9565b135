"""Training goes on whenever it was stopped, for however many classes, in whatever order."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import surgery
from tests.optimizers.training import NONE, OPTIMIZERS, Making, batches, network, train

# The bias in front of the batch norm has a gradient of rounding errors alone, and Rprop steps by
# their sign: another order of the classes is enough to turn it.
ELEMENTWISE = [making for making in OPTIMIZERS if making.elementwise and making.name != "rprop"]
EXAMPLE = torch.zeros(2, 8)


@settings(max_examples=40)
@given(
    making=st.sampled_from(ELEMENTWISE),
    before=st.integers(0, 4),
    after=st.integers(1, 4),
    order=st.permutations(range(8)),
    classes=st.integers(5, 8),
)
def test_going_on_equals_never_having_stopped(
    making: Making, before: int, after: int, order: list[int], classes: int
) -> None:
    """The loss looks at the old classes alone, wherever they went."""
    whole = network().double()
    data = [(images.double(), labels) for images, labels in batches(before + after)]
    stopped = copy.deepcopy(whole)
    train(whole, making.make(whole.parameters()), data)
    optimizer = making.make(stopped.parameters())
    train(stopped, optimizer, data[:before])
    # Where each old class goes; the rest of the places are new.
    places = [place for place in order if place < classes][:5]
    outcome = surgery.replace_head(
        stopped,
        classes,
        keep={place: number for number, place in enumerate(places)},
        heads="4",
        example=EXAMPLE,
        registry=NONE,
    )
    surgery.follow(optimizer, outcome)
    for images, labels in data[before:]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(stopped(images)[:, places], labels).backward()
        optimizer.step()
    now, expected = stopped.state_dict(), whole.state_dict()
    for name in ("4.weight", "4.bias"):
        now[name] = now[name][places]
    for name, value in expected.items():
        torch.testing.assert_close(now[name], value, rtol=1e-8, atol=1e-9, msg=name)


@settings(max_examples=40)
@given(making=st.sampled_from(OPTIMIZERS), before=st.integers(0, 3), classes=st.integers(1, 9))
def test_taking_it_back_leaves_no_trace(making: Making, before: int, classes: int) -> None:
    whole, data = network(), batches(before + 2)
    stopped = copy.deepcopy(whole)
    train(whole, making.make(whole.parameters()), data)
    optimizer = making.make(stopped.parameters())
    train(stopped, optimizer, data[:before])
    keep = {place: place for place in range(min(classes, 5))}
    outcome = surgery.replace_head(
        stopped, classes, keep=keep, heads="4", example=EXAMPLE, registry=NONE
    )
    surgery.follow(optimizer, outcome)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    train(stopped, optimizer, data[before:])
    assert all(map(torch.equal, stopped.state_dict().values(), whole.state_dict().values()))
