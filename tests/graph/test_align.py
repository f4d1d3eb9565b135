"""Graphs laid one over the other: what names, views and spelling say about it, namely nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import PlanError, SurgeryError
from surgery.families.registry import Registry
from surgery.graph.align import Alignment, alignments
from surgery.graph.canonical import Canonical
from surgery.graph.distinctions import distinctions, ways
from surgery.graph.example import Example
from surgery.graph.pieces import Piece, cut, features_last, layout, numbered, piece_of, rows_of
from surgery.graph.record import record_graph
from surgery.graph.reduce import canonical
from tests.strategies import HOSTILE, Classifier, Hostile, classifiers, rename, renamings

NOTHING = Registry.of()


def cells(model: nn.Module, *args: Tensor) -> Canonical:
    return canonical(record_graph(model, Example(args), train=False))


def over(one: nn.Module, other: nn.Module, *args: Tensor) -> Alignment:
    return next(alignments(cells(one, *args), cells(other, *args)))


@given(data=st.data(), truth=classifiers())
def test_names_say_nothing(data: st.DataObject, truth: Classifier):
    model = copy.deepcopy(truth.model).eval()
    mapping = rename(model, data.draw(renamings(model)))
    found = surgery.align(truth.model, model, example=truth.example, registry=NOTHING)
    assert found.complete
    if not found.ambiguous:
        for address, name in found.rename.items():
            assert name is None or name == mapping[address]
    used = {pair.donor for pair in found.pairs}
    assert {mapping[address] for address in used} == {pair.recipient for pair in found.pairs}


# They have no parameter that takes part in the forward pass.
EMPTY = {"no_parameters", "identity", "unused_layer"}


@pytest.mark.parametrize("truth", HOSTILE, ids=str)
def test_a_model_is_brought_into_another_of_its_class(truth: Hostile):
    donor, recipient = truth.make(), truth.make()
    given = {"match": "graph", "example": truth.example(), "registry": NOTHING}
    if str(truth) in EMPTY:
        with pytest.raises(PlanError, match="nothing in common"):
            surgery.transplant(donor, recipient, **given)
        return
    outcome = surgery.transplant(donor, recipient, **given)
    assert any(note.startswith("proven: ") for note in outcome.plan.notes)


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(st.data())
def test_a_piece_is_what_the_views_showed(data: st.DataObject):
    shape = tuple(data.draw(SHAPES))
    flat = layout(shape)
    real = torch.arange(flat.numel()).view(shape)
    for _ in range(data.draw(st.integers(0, 4))):
        if flat.dim() == 0:
            break
        axis = data.draw(st.integers(0, flat.dim() - 1))
        moves: list[Callable[[Tensor], Tensor]] = [
            lambda t, a=axis: t.transpose(0, a),
            lambda t, a=axis: t.select(a, t.shape[a] - 1),
            lambda t, a=axis: t.narrow(a, t.shape[a] // 2, t.shape[a] - t.shape[a] // 2),
            lambda t, a=axis: t.unsqueeze(a),
        ]
        move = data.draw(st.sampled_from(moves))
        flat, real = move(flat), move(real)
    piece = piece_of("w", flat)
    whole = torch.arange(piece.numel if not shape else torch.Size(shape).numel()).view(shape)
    assert piece.of(whole).flatten().tolist() == real.flatten().tolist()


@given(st.permutations(range(4)), st.integers(0, 2), st.booleans())
def test_rows_are_the_features_that_a_selection_leaves(order: list[int], part: int, last: bool):
    """Three parts of two heads of four, in a batch of two: whatever the order of the axes."""
    numbers = torch.arange(24).expand(2, 24)
    view = features_last((2, 24), 1)
    split = (2, 3, 2, 4) if last else (2, 2, 3, 4)
    where = 1 if last else 2
    place = order.index(where)
    shown = [t.view(split).permute(order).select(place, part) for t in (view, numbers)]
    rows = rows_of(shown[0], 24)
    assert rows is not None
    assert sorted(numbered(rows)) == sorted(set(shown[1].flatten().tolist()))


@given(st.integers(0, 5), st.integers(1, 6))
def test_a_cut_is_the_rows_it_names(first: int, count: int):
    weight = torch.arange(36).view(12, 3)
    piece = cut(Piece("w", (12, 3), (3, 1)), (first, ((count, 1),)))
    assert torch.equal(piece.of(weight), weight[first : first + count])


class Uses(nn.Module):
    """One parameter, and what is done with it."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.use = nn.Parameter(torch.randn(shape)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


# Ways to write one thing: what they do with a weight of which shape, on which input.
SAME: dict[str, tuple[tuple[int, ...], list[tuple[Callable[..., Tensor], tuple[int, ...]]]]] = {
    "a product": (
        (2, 6),
        [
            (functional.linear, (5, 6)),
            (lambda x, w: x @ w, (6, 5)),
            (lambda x, w: torch.einsum("bi,oi->bo", x, w), (5, 6)),
            (lambda x, w: (w @ x.t()).t(), (5, 6)),
            (lambda x, w: functional.conv1d(x[..., None], w).squeeze(-1), (5, 6, 1)),
            (lambda x, w: functional.conv2d(x[..., None, None], w).flatten(1), (5, 6, 1, 1)),
            (lambda x, w: functional.dropout(functional.linear(x, w), 0.5, False), (5, 6)),
        ],
    ),
    "a scale": (
        (2, 4, 3, 3),
        [
            (lambda x, w: x * w, (4, 1, 1)),
            (lambda x, w: w * x, (1, 4, 1, 1)),
            (lambda x, w: x * w[:, None, None], (4,)),
            (lambda x, w: (x.permute(0, 2, 3, 1) * w).permute(0, 3, 1, 2), (4,)),
        ],
    ),
    "positions": (
        (2, 5, 4),
        [
            (lambda x, w: x + w, (1, 5, 4)),
            (lambda x, w: w + x, (5, 4)),
            (lambda x, w: x + w.expand(len(x), -1, -1), (1, 5, 4)),
            (lambda x, w: x + functional.embedding(torch.arange(5), w), (5, 4)),
            (lambda x, w: x + functional.interpolate(w, size=4, mode="linear"), (1, 5, 4)),
            (
                lambda x, w: x + functional.interpolate(w[None], (5, 4), mode="bicubic")[0],
                (1, 5, 4),
            ),
            (lambda x, w: functional.pad(x, (0, 0)) + w.roll(0, 0), (5, 4)),
        ],
    ),
}
CASES = [
    (name, one, other)
    for name, (_, written) in SAME.items()
    for one in range(len(written))
    for other in range(len(written))
]


@pytest.mark.parametrize(("name", "one", "other"), CASES)
def test_one_thing_written_in_two_ways_is_one_thing(name: str, one: int, other: int):
    shape, written = SAME[name]
    x = torch.randn(shape)
    donor, recipient = (
        Uses(use, *size).eval() for use, size in (written[place] for place in (one, other))
    )
    surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    with torch.no_grad():
        assert torch.allclose(donor(x), recipient(x), atol=1e-6)


@pytest.mark.parametrize("name", SAME)
def test_other_things_are_not(name: str):
    shape, written = SAME[name]
    use, size = written[0]
    other = next(each for each in SAME if each != name)
    wrong = Uses(SAME[other][1][0][0], *SAME[other][1][0][1])
    with pytest.raises(SurgeryError):
        surgery.transplant(
            Uses(use, *size), wrong, match="graph", example=torch.randn(shape), registry=NOTHING
        )


def test_settings_that_differ_are_named():
    one = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4, eps=0.5))
    other = nn.Sequential(nn.Conv2d(3, 4, 3, stride=1), nn.BatchNorm2d(4))
    found = {each.name: (each.theirs, each.ours) for each in distinctions(over(one, other, IMAGE))}
    assert found == {"stride": ((2, 2), (1, 1)), "eps": (0.5, 1e-5)}


def test_the_form_of_an_activation_is_named():
    one = nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 2))
    other = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    found = {each.name: (each.theirs, each.ours) for each in ways(over(one, other, ROW))}
    assert found == {"approximate": ("tanh", "none")}


# Two ways to write one thing on the way from one product to the next.
SPELLED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "axes from the end": (lambda x: x.mean((-1, -2), True), lambda x: x.mean((2, 3), True)),
    "axes that are dropped": (lambda x: x.sum((-1, -2)), lambda x: x.sum((2, 3))),
    "one axis": (lambda x: x.softmax(-1), lambda x: x.softmax(3)),
    "numbers within rounding": (
        lambda x: x * 0.42044820762685725,
        lambda x: x * 0.4204482076268573,
    ),
    "gated by itself": (functional.silu, lambda x: x.sigmoid() * x),
    "gated hard": (functional.hardswish, lambda x: x * functional.hardsigmoid(x)),
    "zeros in two steps": (
        lambda x: functional.pad(x, (0, 0, 0, 0)),
        lambda x: functional.interpolate(x, size=x.shape[2:], mode="bilinear"),
    ),
    "several ways to one place": (
        lambda x: torch.cat([-x, x.relu(), x], 1),
        lambda x: torch.cat([-x, x.relu(), x], -3),
    ),
}
# And two things.
APART: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "other axes": (
        lambda x: x.mean((1, 2), True),
        lambda x: x.mean((-1, -2), True),
        "mean dim: (1, 2) in the donor (), (2, 3) in the recipient",
    ),
    "another number": (lambda x: x * 0.5, lambda x: x * 0.500001, "mul other: 0.5 in the donor"),
    "gated by something else": (
        functional.silu,
        lambda x: (x * 1.702).sigmoid() * x,
        "silu() in the donor (), mul(other=1.702) then sigmoid() then mul() in the recipient",
    ),
}


class Between(nn.Module):
    """Two products, and something on the way."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.LazyLinear(2)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.way(self.first(x)).flatten(1))


def between(name: str, known: dict[str, Any]) -> list[str]:
    """What is said to differ between two spellings."""
    made = [Between(way).eval() for way in known[name][:2]]
    with torch.no_grad():
        for model in made:
            model(IMAGE)
    found = over(made[0], made[1], IMAGE)
    return [str(each) for each in (*distinctions(found), *ways(found))]


@pytest.mark.parametrize("name", SPELLED)
def test_one_thing_in_another_spelling_is_no_difference(name: str):
    assert between(name, SPELLED) == []


@pytest.mark.parametrize("name", APART)
def test_another_thing_is_one(name: str):
    said = " ".join(between(name, APART)).replace("the model", "")
    assert APART[name][2] in said


def test_padding_in_a_step_of_its_own_is_told_as_a_whole():
    def padded(around: tuple[int, ...], own: int) -> nn.Module:
        pad = nn.ConstantPad2d(around, 0.0)
        return nn.Sequential(nn.Conv2d(3, 4, 1), pad, nn.Conv2d(4, 5, 3, padding=own))

    for one, other, told in (
        (padded((1, 1, 1, 1), 0), padded((0, 0, 0, 0), 1), []),
        (padded((0, 1, 0, 1), 1), padded((0, 1, 0, 1), 1), []),
        (
            padded((0, 2, 0, 2), 0),
            padded((0, 0, 0, 0), 1),
            [("padding", "(0, 0) behind constant_pad_nd(pad=(0, 2, 0, 2), value=0.0)", "(1, 1)")],
        ),
    ):
        for pair in (one, other), (other, one):
            found = over(*pair, IMAGE)
            differing = [*distinctions(found), *ways(found)]
            if pair[0] is one:
                assert [(d.name, d.theirs, d.ours) for d in differing] == told
            else:
                assert [(d.name, d.ours, d.theirs) for d in differing] == told


def test_a_deeper_model_keeps_what_both_have():
    def stack(depth: int) -> nn.Module:
        blocks = [nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(depth)]
        return nn.Sequential(nn.Linear(3, 3), *blocks, nn.Linear(3, 2))

    found = over(stack(4), stack(2), ROW)
    assert not found.complete
    assert found.one.cells[found.pairs[-1][0]].shape == (2, 3)
    assert [a for a, _ in found.pairs] == sorted(a for a, _ in found.pairs)
    assert [b for _, b in found.pairs] == sorted(b for _, b in found.pairs)


IMAGE, ROW = torch.zeros(1, 3, 9, 9), torch.zeros(1, 3)
