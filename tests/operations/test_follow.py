"""Every tensor with one entry a class is found, whatever it is called, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError, SurgeryError
from surgery.families.registry import Registry
from surgery.operations.follow import multiple_of, per_class_tensors
from surgery.survey import Survey, survey
from tests.hostile import Headed, Pair, conv, images, mlp, random, vectors
from tests.strategies import HOSTILE, Classifier, First, Hostile, classifiers

NO_PLUGINS = Registry.of()
twins = pytest.mark.parametrize(
    "truth", [m for m in HOSTILE if m.heads and m.has_twin and m.replaceable], ids=str
)


def look(model: nn.Module, example: Any) -> Survey:
    return survey(model, example, registry=NO_PLUGINS)


def followers(known: Survey, *heads: str) -> dict[str, int]:
    """Address -> class axis of everything that follows any of these heads, or any at all."""
    return {
        address: item.axis
        for head in known.heads
        if not heads or head.address in heads
        for item in per_class_tensors(known, head)
        for address in item.addresses
    }


def differing(model: nn.Module, twin: nn.Module) -> dict[str, int]:
    """Address -> the axis along which a tensor of a twin has another size."""
    other = twin.state_dict(keep_vars=True)
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        axes = [a for a, size in enumerate(tensor.shape) if size != other[name].shape[a]]
        if axes:
            [found[name]] = axes
    return found


@twins
def test_they_are_those_that_a_twin_has_in_another_size(truth: Hostile) -> None:
    model = truth.make()
    found = followers(look(model, truth.example()), *truth.heads, *truth.train_heads)
    kept = {name: axis for name, axis in found.items() if name in model.state_dict()}
    assert kept == differing(model, truth.make(classes=13))
    plain = {a for a in truth.follows if "." not in a and isinstance(vars(model).get(a), Tensor)}
    assert set(found) - set(kept) == plain


@settings(max_examples=40)
@given(classifiers())
def test_in_drawn_models_as_well(drawn: Classifier) -> None:
    model, example, truth = drawn
    # What holds one entry for a single class looks like what holds one for all.
    assume(set(truth.heads.values()) != {1})
    found = followers(look(model, example))
    assert found == differing(model, truth.make(classes=13))


class TwoNorms(Headed):
    def __init__(self) -> None:
        super().__init__(8)
        self.inside, self.behind = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.fc(self.inside(self.trunk(x))))


def test_sizes_that_are_equal_by_chance_are_told_apart() -> None:
    """Eight features and eight classes: of two equal norms one is about the classes."""
    found = followers(look(TwoNorms(), vectors()()))
    assert found == {
        "fc.weight": 0,
        "fc.bias": 0,
        **{f"behind.{n}": 0 for n in ("weight", "bias", "running_mean", "running_var")},
    }


@pytest.mark.parametrize(
    ("norm", "attribute"),
    [
        (lambda: nn.BatchNorm1d(5), "num_features"),
        (lambda: nn.PReLU(5), "num_parameters"),
        (lambda: nn.LayerNorm(5), "normalized_shape"),
        (lambda: nn.GroupNorm(1, 5), "num_channels"),
    ],
)
def test_the_layers_behind_say_their_new_size(norm: Any, attribute: str) -> None:
    layer = norm()
    model = nn.Sequential(Headed(), layer)
    old = getattr(layer, attribute)
    outcome = surgery.replace_head(model, 7, heads="0.fc", example=random(4, 8))
    new = getattr(layer, attribute)
    assert new == ((7,) if isinstance(old, tuple) else 7)
    assert all(parameter.shape == (7,) for parameter in layer.parameters())
    assert model(random(4, 8)).shape == (4, 7)
    outcome.undo()
    assert getattr(layer, attribute) == old


@pytest.mark.parametrize("affine", [True, False])
def test_groups_behind_the_head_share_the_classes_evenly(affine: bool) -> None:
    model = nn.Sequential(Headed(6), nn.GroupNorm(3, 6, affine=affine))
    known = look(model, random(4, 8))
    assert multiple_of(known, known.heads[0]) == 3
    outcome = surgery.replace_head(model, 9, heads="0.fc", example=random(4, 8))
    assert outcome.plan.probes["0.fc"] % 3 == 0
    assert outcome.undo() is model
    with pytest.raises(PlanError, match="3 groups") as raised:
        surgery.replace_head(model, 7, heads="0.fc", example=random(4, 8))
    assert (raised.value.expected, raised.value.found) == ("a multiple of 3", 7)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_of_the_head_itself(layer: Any) -> None:
    model = Pair(conv(3, 8), layer(8, 12, 3, groups=4))
    known = look(model, images()())
    assert multiple_of(known, known.heads[0]) == 4
    shares = {item.part: item.share for item in per_class_tensors(known, known.heads[0])}
    assert shares == {"weight": 4 if layer is nn.ConvTranspose2d else 1, "bias": 1}
    with pytest.raises(PlanError, match="4 groups"):
        surgery.replace_head(model, 7, heads="head", example=images()())


class Reading(nn.Module):
    """Coarse classes are an output and are read by the layer that makes the fine ones."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.coarse, self.fine = mlp(), nn.Linear(8, 3), nn.Linear(11, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        coarse = self.coarse(x)
        return coarse, self.fine(torch.cat([x, coarse], 1))


def test_classes_that_a_later_layer_reads_cannot_change() -> None:
    model = Reading()
    with pytest.raises(PlanError, match="are read by a later layer") as raised:
        surgery.replace_head(model, 7, heads="coarse", example=vectors()())
    assert raised.value.where == "fine.weight"
    assert "in fine" in str(raised.value.found)
    assert "choose another head" in str(raised.value.fix)
    assert model.coarse.out_features == 3


def test_the_layer_that_reads_them_can() -> None:
    model = Reading()
    outcome = surgery.replace_head(model, 7, heads="fine", example=vectors()())
    coarse, fine = model(vectors()())
    assert (coarse.shape, fine.shape) == ((2, 3), (2, 7))
    assert outcome.plan.notes == ("coarse (3 classes) keeps its classes",)


class Weighted(Headed):
    """A loss with class weights, which runs in the training loop and not in forward."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=weight)
        self.multi = nn.BCEWithLogitsLoss(pos_weight=torch.ones(5))
        self.other = nn.CrossEntropyLoss(weight=torch.ones(8))
        self.register_buffer("class_weights", torch.full((5,), 0.5))
        self.register_buffer("anchors", torch.ones(5))
        self.label_prior = torch.ones(5)


def test_class_weights_of_a_loss_follow_though_forward_never_runs_it() -> None:
    model = Weighted(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    before = model.loss.weight
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    labels = torch.tensor([0, 6])
    assert model.loss(model(vectors()()), labels).isfinite()
    assert torch.equal(model.loss.weight, torch.full((7,), 3.0))
    assert torch.equal(model.multi.pos_weight, torch.ones(7))
    assert torch.equal(model.class_weights, torch.full((7,), 0.5))
    assert torch.equal(model.label_prior, torch.ones(7))
    assert model.other.weight.shape == (8,)
    assert model.anchors.shape == (5,)
    assert "loss.weight holds the mean over the old classes" in outcome.plan.notes
    outcome.undo()
    assert model.loss.weight is before


class TwoWeighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 5)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


def test_class_weights_stay_where_one_of_two_equal_heads_stays() -> None:
    model = TwoWeighted()
    surgery.replace_head(model, 7, heads="one", example=vectors()()).undo()
    assert model.loss.weight.shape == (5,)
    outcome = surgery.replace_head(model, 7, heads=["one", "two"], example=vectors()())
    assert model.loss.weight.shape == (7,)
    assert [step.address for step in outcome.plan.steps].count("loss.weight") == 1


class SharedTensor(nn.Module):
    """Two heads with one bias behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 5)
        self.bias = nn.Parameter(torch.arange(5.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x) + self.bias, self.two(x) + self.bias


def test_a_tensor_behind_two_heads_follows_once_or_not_at_all() -> None:
    model = SharedTensor()
    outcome = surgery.replace_head(model, 7, heads=["one", "two"], example=vectors()())
    assert [out.shape for out in model(vectors()())] == [(2, 7), (2, 7)]
    assert outcome.plan.parameters == (95, 133)
    outcome.undo()
    with pytest.raises(PlanError, match="two heads share a tensor") as raised:
        surgery.replace_head(model, heads={"one": 7, "two": 9}, example=vectors()())
    assert raised.value.where == "one, two, bias"


class Pairwise(Headed):
    """A matrix over pairs of classes: both of its axes are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits[:, :, None] + logits[:, None, :] + self.pairs).flatten(1)


def test_a_tensor_over_pairs_of_classes_is_refused() -> None:
    model = Pairwise()
    with pytest.raises(SurgeryError):
        surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert model.fc.out_features == 5


class Squared(Headed):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, (logits[:, :, None] * logits[:, None, :]).flatten(1)


def test_an_output_over_pairs_of_classes_is_refused_while_planning() -> None:
    with pytest.raises(PlanError, match="not explained") as raised:
        surgery.replace_head(Squared(), 7, heads="fc", example=vectors()())
    assert raised.value.where == "output[1] (eval)"


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("batch", [2, 3])
def test_a_matrix_repeated_for_each_of_the_batch_has_no_axis_for_the_batch(
    classes: int, batch: int
) -> None:
    """What torch makes of a normed layer behind a recurrent one."""
    head = nn.utils.parametrizations.weight_norm(nn.Linear(4, classes))
    layers = nn.Embedding(11, 4), First(nn.LSTM(4, 4, batch_first=True)), head
    model = nn.Sequential(*layers)
    example = torch.ones(batch, 6, dtype=torch.long)
    [found] = look(model, example).heads
    assert (found.num_classes, found.class_axis) == (classes, 2)
    surgery.replace_head(model, 7, heads="2", example=example)
    assert model(example).shape == (batch, 6, 7)
