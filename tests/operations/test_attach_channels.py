"""The axis of the channels: the right one, or a refusal whose next step works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.errors import AmbiguousHeadError, ArgumentError, PlanError
from surgery.operations.attach_roles import Roles
from surgery.operations.attached import Pooled
from tests.operations.state import differences, state_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Along(nn.Module):
    """A layer along one axis, behind which it may be added to what went in."""

    def __init__(self, layer: nn.Module, axis: int, residual: bool = False) -> None:
        super().__init__()
        self.layer, self.axis, self.residual = layer, axis, residual

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x.movedim(self.axis, -1)).movedim(-1, self.axis)
        return x + made if self.residual else made


class Attending(nn.Module):
    """Attention between places, of several heads, written by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.taken, self.heads = nn.LayerNorm(width), nn.Linear(width, 3 * width), heads
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, places, width = x.shape
        parts = self.taken(self.norm(x)).reshape(samples, places, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return x + self.out(seen.transpose(1, 2).reshape(samples, places, width))


class Turned(nn.Module):
    """What comes out, with the channels along another axis."""

    def __init__(self, *layers: nn.Module, before: int, after: int) -> None:
        super().__init__()
        self.layers, self.before, self.after = nn.Sequential(*layers), before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).movedim(self.before, self.after)


class Flat(nn.Module):
    """Patches of an image in a row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Case(NamedTuple):
    model: nn.Module
    example: Tensor
    axis: int

    def __repr__(self) -> str:
        return f"{self.model}\n{list(self.example.shape)}, channels along {self.axis}"


SIZES = st.sampled_from([2, 3, 4, 5, 6, 7])


@st.composite
def images(draw: st.DrawFn) -> Case:
    """Convolutions and normalisations, of one to three axes of places, turned or not."""
    axes, width = draw(st.integers(1, 3)), draw(SIZES)
    kind, taken = CONVOLUTIONS[axes - 1], draw(SIZES)
    size = draw(st.integers(1, 3))
    layers: list[nn.Module] = [kind(taken, width, size, padding="same")]
    for _ in range(draw(st.integers(0, 3))):
        made = draw(SIZES)
        group = draw(st.booleans())
        layers += draw(
            st.sampled_from(
                [
                    [nn.ReLU()],
                    [(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1](width)],
                    [nn.GroupNorm(1, width)],
                    [Along(nn.LayerNorm(width), 1)],
                    [Along(nn.Linear(width, width), 1, residual=True)],
                    [kind(width, width, 3, padding="same", groups=width if group else 1)],
                ]
            )
        )
        if draw(st.booleans()):
            layers.append(kind(width, made, 1))
            width = made
    after = draw(st.integers(1, axes + 1))
    example = torch.zeros(2, taken, *draw(st.tuples(*[SIZES] * axes)))
    return Case(Turned(*layers, before=1, after=after), example, after)


@st.composite
def tokens(draw: st.DrawFn) -> Case:
    """Words, patches or vectors in a row, mixed along both axes, tokens first or last."""
    places, width = draw(SIZES), draw(st.sampled_from([4, 6, 8]))
    stem = draw(st.sampled_from(["vectors", "words", "patches"]))
    if stem == "vectors":
        taken = draw(SIZES)
        layers: list[nn.Module] = [nn.Linear(taken, width)]
        example = torch.zeros(2, places, taken)
    elif stem == "words":
        layers, example = [nn.Embedding(5, width)], torch.zeros(2, places, dtype=torch.int64)
    else:
        layers, places = [nn.Conv2d(3, width, 2, 2), Flat()], 2 * places
        example = torch.zeros(2, 3, 4, places)
    for _ in range(draw(st.integers(0, 4))):
        step = draw(st.sampled_from(["norm", "act", "attend", "places", "more places", "channels"]))
        if step == "places":
            layers.append(Along(nn.Linear(places, places), 1, residual=draw(st.booleans())))
        elif step == "more places":
            more = draw(SIZES)
            layers.append(Along(nn.Linear(places, more), 1))
            places = more
        elif step == "channels":
            layers.append(Along(nn.Linear(width, width), 2, residual=draw(st.booleans())))
        elif step == "attend":
            layers.append(Attending(width, 2))
        else:
            layers.append(nn.LayerNorm(width) if step == "norm" else nn.GELU())
    after = draw(st.sampled_from([1, 2]))
    return Case(Turned(*layers, before=2, after=after), example, after)


def check(case: Case) -> None:
    """Attach a head: at the right axis, or after the next step that a refusal gives."""
    options: dict[str, Any] = {"attach": "output", "pool": "mean", "example": case.example}
    before = state_of(case.model)
    refused = None
    try:
        outcome = surgery.replace_head(case.model, 11, **options)
    except AmbiguousHeadError as error:
        refused = error
    if refused is not None:
        assert "channels=" in str(refused.fix)
        assert not differences(before, state_of(case.model))
        outcome = surgery.replace_head(case.model, 11, **options, channels=case.axis)
    assert isinstance(outcome.model.pool, Pooled)
    assert outcome.model.pool.axis == case.axis
    assert outcome.model(case.example).shape == (2, 11)


@settings(max_examples=60, deadline=None)
@given(images())
def test_the_channels_of_convolutions_are_found(case: Case):
    check(case)


@settings(max_examples=60, deadline=None)
@given(tokens())
def test_the_channels_of_words_and_patches_are_found(case: Case):
    check(case)


def mixer(*, norm: bool, square: bool, free: bool = False) -> nn.Module:
    """Channels made first and places mixed last, with or without what tells them apart."""
    taken = 8 if square else 4
    layers: list[nn.Module] = [nn.Linear(taken, 8), nn.GELU()]
    if norm:
        layers.append(nn.LayerNorm(8))
    if not free:
        layers.append(Along(nn.Linear(6, 6), 1))
    return nn.Sequential(*layers)


DECIDED: dict[str, tuple[Callable[[], nn.Module], Tensor, bool]] = {
    "channels change, places stay": (
        *(lambda: mixer(norm=False, square=False), torch.zeros(2, 6, 4)),
        True,
    ),
    "a normalisation": (lambda: mixer(norm=True, square=True), torch.zeros(2, 6, 8), True),
    "two square layers": (lambda: mixer(norm=False, square=True), torch.zeros(2, 6, 8), False),
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_decides_where_the_last_layer_mixes_places(name: str):
    build, example, decided = DECIDED[name]
    options: dict[str, Any] = {"attach": True, "pool": "mean", "example": example}
    if decided:
        outcome = surgery.replace_head(build(), 3, **options)
        assert outcome.model.pool.axis == 2
        assert any("holds the channels" in note for note in outcome.plan.notes)
        return
    with pytest.raises(AmbiguousHeadError, match="which axis") as raised:
        surgery.replace_head(build(), 3, **options)
    assert "channels=2" in str(raised.value.fix)
    for axis in (1, 2, -1):
        outcome = surgery.replace_head(build(), 3, channels=axis, **options)
        assert outcome.model.pool.axis == axis % 3


class Both(nn.Module):
    """Features along two axes, of which only one can get longer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.one(x)
        samples, places, width = made.shape
        along = made.transpose(1, 2).reshape(samples * width, 1, places)
        return made + self.two(along).reshape(samples, width, places).transpose(1, 2)


def test_an_axis_that_grows_with_the_input_holds_no_channels():
    outcome = surgery.replace_head(
        Both(), 3, attach=True, pool="mean", example=torch.zeros(2, 6, 8)
    )
    assert outcome.model.pool.axis == 2


@pytest.mark.parametrize("axis", [0, 3, -3], ids=str)
def test_an_axis_that_is_not_there_is_refused(axis: int):
    model = mixer(norm=True, square=True, free=True)
    with pytest.raises(ArgumentError, match="no such axis") as raised:
        surgery.replace_head(
            model, 3, attach="output", pool="mean", channels=axis, example=torch.zeros(2, 6, 8)
        )
    assert raised.value.fix == "channels=2"


@pytest.mark.parametrize("wrong", [True, "1", 1.0], ids=repr)
def test_what_is_no_axis_is_refused(wrong: Any):
    with pytest.raises(ArgumentError, match="which axis of the features"):
        surgery.replace_head(nn.Linear(2, 2), 3, attach=True, channels=wrong)
    with pytest.raises(ArgumentError, match="channels with attach=True"):
        surgery.replace_head(nn.Linear(2, 2), 3, channels=1)


class Led(nn.Module):
    """Attention that takes the sequence first, with no layer of torch that says so."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.layer, self.first = Attending(8, 2), first

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1) if self.first else self.layer(x)


@pytest.mark.parametrize("length", [2, 5])
def test_attention_between_samples_is_refused(length: int):
    example = torch.zeros(length, 3, 8)
    model = Led(first=True)
    with pytest.raises(PlanError, match="samples") as raised:
        surgery.replace_head(model, 3, attach="output", pool="mean", example=example)
    assert raised.value.fix
    made = surgery.replace_head(Led(False), 3, attach="output", pool="mean", example=example)
    assert made.model.pool.axis == 2


class Levels(nn.Module):
    """The features of every level, each normalised on its way out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        made = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x).relu()
            made.append(norm(x))
        return made


def test_of_several_levels_the_deepest_is_taken():
    outcome = surgery.replace_head(Levels(), 3, attach=True, example=torch.zeros(2, 3, 9, 9))
    assert outcome.model.way == (("item", 2),)


def test_views_that_merge_axes_are_seen_through():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Flat(), Along(nn.Linear(49, 49), 1), Attending(8, 2))
    graph = surgery.record(model, torch.zeros(2, 3, 9, 9))
    (leaf,) = graph.leaves
    assert leaf.source is not None
    roles = Roles(graph).of(leaf.source)
    assert roles == ({"samples"}, {"places"}, {"channels"})


class Asking(nn.Module):
    """Learnt questions that attend to places, as detectors and latent models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.questions = nn.Parameter(torch.zeros(5, 8))
        self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        places = self.body(x).flatten(2).transpose(1, 2)
        questions = self.questions.expand(len(x), -1, -1)
        seen = (questions @ self.key(places).transpose(1, 2)).softmax(-1)
        made: Tensor = self.norm(seen @ self.value(places))
        return made


def test_learnt_questions_are_places():
    outcome = surgery.replace_head(
        Asking(), 3, attach=True, pool="mean", example=torch.zeros(2, 3, 9, 9)
    )
    assert outcome.model.pool.axis == 2


def test_places_that_are_left_where_channels_were_averaged_are_refused():
    layers = [Turned(nn.Conv3d(3, 8, 3), before=1, after=4), nn.AdaptiveAvgPool3d((None, 1, 1))]
    model, example = nn.Sequential(*layers), torch.zeros(2, 3, 7, 9, 9)
    with pytest.raises(AmbiguousHeadError, match="which axis"):
        surgery.replace_head(model, 3, attach=True, example=example)
    outcome = surgery.replace_head(model, 3, attach=True, channels=2, example=example)
    assert outcome.model.pool.axis == 2


class Matched(nn.Module):
    """Images and texts, and how alike each is to each."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        images, texts = self.image(image).relu(), self.text(text).relu()
        return {"alike": images @ texts.T, "images": images, "texts": texts}


def test_how_alike_samples_are_is_no_feature_of_theirs():
    example = (torch.zeros(3, 6), torch.zeros(3, 5))
    with pytest.raises(AmbiguousHeadError, match="nothing decides") as raised:
        surgery.replace_head(Matched(), 2, attach=True, example=example)
    assert "alike" not in str(raised.value)
    with pytest.raises(ArgumentError, match="no features of every sample"):
        surgery.replace_head(Matched(), 2, attach="['alike']", example=example)
    outcome = surgery.replace_head(Matched(), 2, attach="['images']", example=example)
    assert outcome.model.head.in_features == 8


def test_a_head_on_places_is_told():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 1), nn.Flatten())
    outcome = surgery.replace_head(model, 2, attach="output", example=torch.zeros(2, 3, 9))
    assert any("holds places" in note for note in outcome.plan.notes)
    whole = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten())
    outcome = surgery.replace_head(whole, 2, attach="output", example=torch.zeros(2, 3, 9))
    assert not any("holds places" in note for note in outcome.plan.notes)
