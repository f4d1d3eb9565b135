"""What a head is put on: which output, which axis, pooled how; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import (
    AmbiguousHeadError,
    ArgumentError,
    NoHeadError,
    PlanError,
    SurgeryError,
)
from surgery.operations.attached import POOLS, Headed, Pooled, way
from tests.operations.state import differences, state_of
from tests.operations.trunks import Channels, Pair, Place, Several, Tokens, images, vectors, words


class Giving(nn.Module):
    """A trunk whose output is made of its features by a function."""

    def __init__(self, give: Callable[..., Any], axes: int = 2) -> None:
        super().__init__()
        self.trunk, self.more = Channels(5, axes), nn.Conv2d(5, 4, 3)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        first = self.trunk(x)
        return self.give(first, self.more(first))


OUTPUTS: dict[str, tuple[Callable[..., Any], str, int]] = {
    "the one": (lambda one, two: one, "output", 5),
    "one in a list": (lambda one, two: [one], "output[0]", 5),
    "one in dicts": (lambda one, two: {"a": {"b.c": one}}, "output['a']['b.c']", 5),
    "the deepest": (lambda one, two: (one, two), "output[1]", 4),
    "the deepest, before": (lambda one, two: {"x": two, "y": one}, "output['x']", 4),
    "the pooled": (lambda one, two: (one, one.mean((2, 3))), "output[1]", 5),
    "the pooled, as an image": (lambda one, two: (one, two.mean((2, 3), True)), "output[1]", 4),
    "one beside numbers": (lambda one, two: (one, one.mean(), one.argmax(1)), "output[0]", 5),
    "the same twice": (lambda one, two: (two, one, two), "output[0]", 4),
    "joined branches": (lambda one, two: torch.cat([one, one], 1), "output", 10),
}


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_the_output_that_features_are_pooled_from(name: str):
    give, path, size = OUTPUTS[name]
    model = Giving(give).eval()
    outcome = surgery.replace_head(model, 3, attach=True, example=images())
    made = outcome.model
    assert isinstance(made, Headed)
    assert made.way == way(path)
    assert made.head.in_features == size
    assert made.eval()(images()).shape == (2, 3)


def test_the_caller_chooses_an_output():
    model = Giving(lambda one, two: {"near": one, "far": two})
    for chosen in ("output['near']", "['near']"):
        outcome = surgery.replace_head(model, 3, attach=chosen, example=images())
        assert outcome.model.head.in_features == 5
        outcome.undo()


@pytest.mark.parametrize("pool", ["mean", "max", "first", "last"])
def test_pooling_is_asked_of_what_is_not_pooled(pool: str):
    outcome = surgery.replace_head(Several(), 3, attach=True, pool=pool, example=words())
    made = outcome.model.eval()
    hidden = made.backbone(**words()).hidden
    short = {"mean": hidden[0, :3].mean(0), "max": hidden[0, :3].amax(0)}
    long = {"mean": hidden[1].mean(0), "max": hidden[1].amax(0)}
    short |= {"first": hidden[0, 0], "last": hidden[0, 2]}
    long |= {"first": hidden[1, 0], "last": hidden[1, 4]}
    expected = made.head(torch.stack([short[pool], long[pool]]))
    assert torch.allclose(made(**words()), expected, atol=1e-6)


def test_a_mask_counts_for_words_whether_or_not_the_example_has_one():
    ids, mask = words()["input_ids"], words()["attention_mask"]
    for example in ((ids,), (ids, mask), {"input_ids": ids}):
        outcome = surgery.replace_head(Tokens(), 3, attach=True, pool="mean", example=example)
        assert outcome.model.mask == ("attention_mask", 1)
        made = outcome.model.eval()
        hidden = made.backbone(ids, mask)
        expected = made.head(torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]))
        assert torch.allclose(made(ids, mask), expected, atol=1e-6)
        # What attention takes in another form says nothing of single words.
        assert torch.equal(made(ids, mask[:, None]), made(ids))


class Passing(nn.Module):
    """Passes everything on, as the wrappers of libraries do, and may put words in front."""

    def __init__(self, front: int = 0) -> None:
        super().__init__()
        self.inner, self.front = Tokens(), front

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.inner(*args, **kwargs)
        return torch.cat([hidden[:, : self.front], hidden], 1) if self.front else hidden


def test_a_mask_is_seen_through_what_passes_it_on():
    outcome = surgery.replace_head(Passing(), 3, attach=True, pool="mean", example=words())
    made = outcome.model.eval()
    hidden = made.backbone(**words())
    expected = made.head(torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]))
    assert torch.allclose(made(**words()), expected, atol=1e-6)


def test_a_mask_that_does_not_fit_the_features_is_told():
    outcome = surgery.replace_head(Passing(2), 3, attach=True, pool="mean", example=words())
    assert outcome.model.mask is None
    assert any("attention_mask [2, 5] does not fit the 7 places" in n for n in outcome.plan.notes)


@pytest.mark.parametrize("given", [True, False])
def test_padding_that_is_said_under_another_name_is_told(given: bool):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    example: dict[str, Any] = {"src": torch.zeros(2, 6, 16)}
    if given:
        example["src_key_padding_mask"] = torch.zeros(2, 6, dtype=torch.bool)
    outcome = surgery.replace_head(
        model, 7, attach=True, pool="mean", example=example, dry_run=True
    )
    told = [note for note in outcome.plan.notes if "src_key_padding_mask is not read" in note]
    assert len(told) == 1


def test_several_branches_that_do_not_meet_are_for_the_caller_to_choose():
    model = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 5, 3)})
    model.forward = lambda x: (model["a"](x).relu(), model["b"](x).relu())  # type: ignore[method-assign]
    with pytest.raises(AmbiguousHeadError) as raised:
        surgery.replace_head(model, 3, attach=True, example=images())
    assert "output[0]: float32[2, 4, 7, 6]" in str(raised.value)
    assert "attach='output[0]'" in str(raised.value)


class Rectified(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class Mixed(nn.Module):
    """Features made along two axes: nobody knows which are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x.transpose(2, 3)).transpose(2, 3)


WRONG: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], type[SurgeryError], str]] = {
    "attach is a number": (Place, vectors, {"attach": 1}, ArgumentError, "attach says"),
    "attach is empty": (Place, vectors, {"attach": ""}, ArgumentError, "attach says"),
    "no such pooling": (Tokens, words, {"pool": "cls"}, ArgumentError, "'first' or 'last'"),
    "pooling alone": (
        *(Tokens, words, {"attach": False, "pool": "mean"}, ArgumentError),
        "attach=True, pool='mean'",
    ),
    "nothing to pool": (Place, vectors, {"pool": "mean"}, ArgumentError, "nothing to pool"),
    "no first pixel": (Channels, images, {"pool": "first"}, ArgumentError, "'mean' or 'max'"),
    "which word": (Tokens, words, {}, ArgumentError, "pool='first' for a class token"),
    "no such output": (Several, words, {"attach": "x"}, ArgumentError, "'output.hidden'"),
    "no features there": (
        *(lambda: Giving(lambda one, two: (one, one.argmax(1))), images, {"attach": "output[1]"}),
        *(ArgumentError, "holds no features"),
    ),
    "no features": (
        *(lambda: Giving(lambda one, two: one.mean()), images, {}, NoHeadError),
        "that a head could be put on",
    ),
    "samples elsewhere": (
        *(lambda: Giving(lambda one, two: one.flatten(2).permute(2, 0, 1)), images, {}),
        *(NoHeadError, "the samples along the first axis"),
    ),
    "any axis": (Rectified, images, {}, AmbiguousHeadError, "which axis"),
    "two axes": (Mixed, lambda: torch.zeros(2, 3, 9, 8), {}, AmbiguousHeadError, "2, 3"),
    "rows kept": (Place, vectors, {"keep": "all"}, ArgumentError, "leave keep out"),
    "old names": (Place, vectors, {"old_classes": ["a"]}, ArgumentError, "leave old_classes out"),
    "numbers by head": (
        *(Place, vectors, {"num_classes": None, "heads": {"fc": 3}}, ArgumentError),
        "an address, or a list of addresses",
    ),
    "no place": (Place, vectors, {"heads": "body.0"}, ArgumentError, "no place for a head"),
    "a key of another sort": (
        *(lambda: Giving(lambda one, two: {(1, 2): one}), images, {}, PlanError, "neither text"),
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_cannot_be_is_refused_and_nothing_is_touched(name: str):
    build, example, options, error, says = WRONG[name]
    model = build()
    before = state_of(model)
    with pytest.raises(error) as raised:
        surgery.replace_head(
            model, **{"num_classes": 3, "attach": True, "example": example(), **options}
        )
    assert says in str(raised.value)
    assert raised.value.fix
    assert not differences(before, state_of(model))


class Modes(nn.Module):
    """A tuple in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Channels()

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        return (x, x) if self.training else x


def test_an_output_must_be_there_in_both_modes():
    with pytest.raises(PlanError, match="not the same in train and in eval mode"):
        surgery.replace_head(Modes(), 3, attach=True, example=images())


def test_a_model_with_a_head_keeps_it():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    model.num_classes = 5
    with pytest.raises(ArgumentError) as raised:
        surgery.replace_head(model, 3, attach=True, example=vectors())
    assert "'2' (5 classes): num_classes says 5" in str(raised.value)
    assert raised.value.fix == "surgery.replace_head(model, 7)"


def test_a_last_layer_that_could_be_a_head_is_taken_for_features_only_by_name():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    with pytest.raises(ArgumentError, match="could be its head") as raised:
        surgery.replace_head(model, 3, attach=True, example=vectors())
    assert "attach='output'" in str(raised.value.fix)
    outcome = surgery.replace_head(model, 3, attach="output", example=vectors())
    assert outcome.model.head.in_features == 5


@pytest.mark.parametrize("heads", ["one", ["one"]], ids=["text", "list"])
def test_the_caller_names_the_place(heads: Any):
    model = Place()
    model.one = nn.Identity()
    model.forward = lambda x: model.fc(model.one(model.body(x)))  # type: ignore[method-assign]
    outcome = surgery.replace_head(model, 3, attach=True, heads=heads, example=vectors())
    assert isinstance(model.one, nn.Linear)
    assert isinstance(model.fc, nn.Identity)
    outcome.undo()
    assert isinstance(model.one, nn.Identity)


def test_a_place_that_does_not_make_the_output_alone_is_refused():
    model = Pair()
    with pytest.raises(PlanError):
        surgery.replace_head(model, 3, attach=True, heads="one", example=vectors())
    outcome = surgery.replace_head(model, 3, attach=True, heads=["one", "two"], example=vectors())
    assert outcome.model is model


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_masked_place_counts_for_nothing(how: Any, axis: int):
    features = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]])
    pooled = Pooled(how, axis)
    places = features.movedim(axis, -1)
    expected = [
        getattr(torch, "mean" if how == "mean" else "amax")(row[seen.bool()], 0)
        for row, seen in zip(places, mask, strict=True)
    ]
    assert torch.allclose(pooled(features, mask), torch.stack(expected), atol=1e-6)
    assert torch.allclose(pooled(features, torch.ones_like(mask)), pooled(features), atol=1e-6)


def test_half_precision_holds_the_mean_of_many_places():
    features, mask = torch.full((1, 600, 2), 500.0, dtype=torch.half), torch.ones(1, 600)
    mask[0, 590:] = 0
    assert torch.equal(Pooled("mean", 2)(features, mask), features[:, 0])


@pytest.mark.parametrize("how", POOLS)
def test_a_sample_that_is_all_padding_stays_finite(how: Any):
    features, mask = torch.randn(2, 5, 3), torch.tensor([[0] * 5, [1] * 5])
    assert Pooled(how, 2)(features, mask).isfinite().all()


class First(nn.Module):
    """Layers that take the sequence first, in a model that does too, or not."""

    def __init__(self, layer: nn.Module, turned: bool) -> None:
        super().__init__()
        self.layer, self.turned = layer, turned

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x.transpose(0, 1) if self.turned else x)
        made = made[0] if isinstance(made, tuple) else made
        return made.transpose(0, 1) if self.turned else made


def attending(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


SEQUENTIAL: dict[str, Callable[[bool], nn.Module]] = {
    "lstm": lambda batch_first: nn.LSTM(8, 6, 2, batch_first=batch_first, bidirectional=True),
    "gru": lambda batch_first: nn.GRU(8, 6, batch_first=batch_first),
    "attention": attending,
}


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_samples_behind_their_sequence_are_not_pooled(name: str, pool: str):
    x = torch.randn(5, 3, 8)
    wrong = First(SEQUENTIAL[name](False), turned=False)
    before = state_of(wrong)
    with pytest.raises(PlanError, match="samples of these features are along their second axis"):
        surgery.replace_head(wrong, 2, attach=True, pool=pool, example=x)
    assert not differences(before, state_of(wrong))
    for right in (First(SEQUENTIAL[name](True), False), First(SEQUENTIAL[name](False), True)):
        made = surgery.replace_head(right, 2, attach=True, pool=pool, example=x).model.eval()
        # Each sample by itself.
        assert torch.allclose(made(x)[1:2], made(x[1:2]), atol=1e-5)


def test_channels_must_be_along_the_same_axis_in_both_modes():
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            made = self.layer(x).relu()
            return made if self.training else made.permute(0, 2, 3, 1)

    with pytest.raises(PlanError, match="not the same in train and in eval"):
        surgery.replace_head(Turning(), 2, attach=True, example=torch.randn(2, 3, 8, 8))


def test_complex_features_are_refused():
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(self.layer(x))

    with pytest.raises(NoHeadError, match="complex64"):
        surgery.replace_head(Spectrum(), 2, attach=True, example=torch.randn(2, 3, 8, 8))


class Behind(nn.Module):
    """An identity, and what the model makes of what comes out of it."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        self.fc, self.behind = nn.Identity(), behind

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.behind(self.fc(self.body(x)))
        return made


BEHIND: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu and softmax": lambda: nn.Sequential(nn.ReLU(), nn.Softmax(1)),
    "dropout": lambda: nn.Dropout(0.5),
    "tanh": nn.Tanh,
    "norm": lambda: nn.LayerNorm(6, elementwise_affine=False),
}


@pytest.mark.parametrize("name", BEHIND)
def test_scores_are_not_put_in_front_of_what_is_done_to_features(name: str):
    model = Behind(BEHIND[name]())
    outcome = surgery.replace_head(model, 3, attach=True, example=vectors())
    assert isinstance(outcome.model, Headed)
    assert isinstance(model.fc, nn.Identity)


@pytest.mark.parametrize("behind", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()], ids=str)
def test_scores_may_be_made_likelihoods_behind_their_place(behind: nn.Module):
    model = Behind(behind)
    outcome = surgery.replace_head(model, 3, attach=True, example=vectors())
    assert outcome.model is model
    assert isinstance(model.fc, nn.Linear)


class Mixer(nn.Module):
    """Its last layer mixes words, not channels."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.mix = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.relu(self.embed(x)).transpose(1, 2)).transpose(1, 2)


def test_words_that_the_last_layer_mixes_are_no_channels():
    words = torch.zeros(2, 6, 4)
    outcome = surgery.replace_head(Mixer(), 7, example=words, attach=True, pool="mean")
    assert outcome.model.head.in_features == 8
