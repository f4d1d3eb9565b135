"""What replacing a head promises: the asked classes everywhere, nothing else moved, all proven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import surgery
from surgery.errors import (
    NoHeadError,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
    WrappedModelError,
)
from tests.hostile import Headed, Pair, conv, images, mlp, random, sequences, tokens, vectors
from tests.operations.state import differences, state_of


def refused(
    model: nn.Module, error: type[SurgeryError], *args: Any, **options: Any
) -> SurgeryError:
    """What is raised; the model stays as it was."""
    before = state_of(model)
    with pytest.raises(error) as raised:
        surgery.replace_head(model, *args, **options)
    assert not differences(before, state_of(model))
    return raised.value


def test_the_layer_stays_and_only_its_parameters_are_new() -> None:
    model = Headed()
    layer, trunk = model.fc, {id(p) for p in model.trunk.parameters()}
    weight, bias = layer.weight, layer.bias
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert outcome.model is model
    assert model.fc is layer
    assert (layer.weight.shape, layer.bias.shape, layer.out_features) == ((7, 8), (7,), 7)
    assert {id(p) for p in model.trunk.parameters()} == trunk
    assert outcome.old == {"fc.weight": weight, "fc.bias": bias}
    assert outcome.new == {"fc.weight": layer.weight, "fc.bias": layer.bias}


def test_the_outcome_says_what_was_planned_and_proven() -> None:
    outcome = surgery.replace_head(Headed(), 7, heads="fc", example=vectors()())
    assert outcome.plan.title == "replace_head('fc': 7)"
    assert [str(step) for step in outcome.plan.steps] == [
        "parameter fc.weight: float32[5, 8] -> float32[7, 8]",
        "parameter fc.bias: float32[5] -> float32[7]",
        "attribute fc.out_features: 5 -> 7",
    ]
    assert [str(change) for change in outcome.plan.outputs] == [
        "output (eval): float32[2, 5] -> float32[2, 7]",
        "output (train): float32[2, 5] -> float32[2, 7]",
    ]
    assert {change.class_axes for change in outcome.plan.outputs} == {(1,)}
    assert outcome.plan.parameters == (117, 135)
    assert outcome.plan.probes == {"fc": 11}
    assert {"outputs", "untouched tensors", "ties", "parameter count", "device and dtype"} <= {
        check.name for check in outcome.checks
    }
    assert all(check.passed for check in outcome.checks)


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6, 8, 1000])
def test_any_number_even_one_that_stands_elsewhere(classes: int) -> None:
    """Of the batch (2), of the image (4, 6), of the features (8), the old one (5)."""
    model = Pair(conv(3, 8), nn.Conv2d(8, 5, 3))
    example = random(2, 3, 6, 6)
    outcome = surgery.replace_head(model, classes, heads="head", example=example)
    assert model(example).shape == (2, classes, 4, 4)
    assert {change.class_axes for change in outcome.plan.outputs} == {(1,)}
    assert outcome.plan.probes["head"] not in (classes, 2, 3, 4, 5, 6, 8)


def test_a_thousand_become_another_thousand() -> None:
    model = Headed(1000)
    old = model.fc.weight
    outcome = surgery.replace_head(model, 1000, heads="fc", example=vectors()())
    assert model.fc.weight is not old
    assert not torch.equal(model.fc.weight, old)
    assert [change.class_axes for change in outcome.plan.outputs] == [(1,), (1,)]
    assert outcome.plan.parameters[0] == outcome.plan.parameters[1]


class Counting(Headed):
    """As wide as its classes by a number in the code: 5 stays 5, whatever the head says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 5))[:, :5]


def test_the_same_number_is_refused_where_it_could_not_be_another() -> None:
    refused(Counting(), SurgeryError, 5, heads="fc", example=vectors()())


def test_hooks_modes_and_flags_carry_over() -> None:
    model = Headed()
    seen: list[str] = []
    handles = [
        model.fc.register_forward_hook(lambda *_: seen.append("forward")),
        model.fc.register_forward_pre_hook(lambda *_: seen.append("before")),
        model.register_forward_hook(lambda *_: seen.append("root")),
    ]
    model.trunk.eval()
    model.trunk.requires_grad_(False)
    tables = model.fc._forward_hooks
    surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert model.fc._forward_hooks is tables
    assert (model.training, model.trunk.training, model.fc.training) == (True, False, True)
    assert not any(p.requires_grad for p in model.trunk.parameters())
    seen.clear()
    model(vectors()())
    assert seen == ["before", "forward", "root"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(vectors()())
    assert seen == []


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_whatever_mode_it_is_called_in(grad: Callable[[], Any]) -> None:
    model = Headed()
    with grad():
        outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    before = model.fc.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        F.cross_entropy(model(vectors()()), torch.tensor([6, 0])).backward()
        optimizer.step()
    assert not torch.equal(model.fc.weight, before)
    assert outcome.undo()(vectors()()).shape == (2, 5)


def test_a_model_on_meta() -> None:
    with torch.device("meta"):
        model = Headed()
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert outcome.plan.outputs[0].after.shape == (2, 7)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_dtype(dtype: torch.dtype) -> None:
    model = Headed().to(dtype)
    surgery.replace_head(model, 7, heads="fc", example=vectors()().to(dtype))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(vectors()().to(dtype)).shape == (2, 7)


def test_a_head_that_is_the_model() -> None:
    model = nn.Linear(8, 5)
    outcome = surgery.replace_head(model, 7, heads="", example=vectors()())
    assert outcome.model is model
    assert model(vectors()()).shape == (2, 7)
    assert outcome.undo() is model
    assert model.out_features == 5


class Depths(nn.Module):
    """One head at three depths, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([mlp(), mlp(), mlp()])
        self.head = self.exit = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(self.head(x))
        return found


def test_a_shared_head_changes_at_every_address_and_depth() -> None:
    model = Depths()
    outcome = surgery.replace_head(model, 7, heads="exit", example=vectors()())
    assert model.exit is model.head
    assert [out.shape for out in model(vectors()())] == [(2, 7)] * 3
    assert set(outcome.new) == {"head.weight", "exit.weight", "head.bias", "exit.bias"}
    assert outcome.new["head.weight"] is outcome.new["exit.weight"]


class Tasks(nn.Module):
    """Three tasks of different sizes, and features."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp()
        self.heads = nn.ModuleDict({"age": nn.Linear(8, 3), "mood": nn.Linear(8, 4)})
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {name: head(x) for name, head in self.heads.items()} | {"score": self.score(x)}


def test_each_head_gets_its_own_number_and_the_others_come_out_bit_for_bit() -> None:
    model = Tasks()
    before = model(vectors()())
    heads = {"heads.age": 9, "heads.mood": 2}
    outcome = surgery.replace_head(model, heads=heads, example=vectors()())
    after = model(vectors()())
    assert {name: out.shape[1] for name, out in after.items()} == {"age": 9, "mood": 2, "score": 1}
    assert torch.equal(after["score"], before["score"])
    assert outcome.plan.notes == ("score (1 classes) keeps its classes",)
    assert len(set(outcome.plan.probes.values())) == 2


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


def test_heads_that_are_added_up_change_together_or_not_at_all() -> None:
    model = Summed()
    surgery.replace_head(model, 7, heads=["one", "two"], example=vectors()()).undo()
    error = refused(model, PlanError, heads={"one": 7, "two": 9}, example=vectors()())
    assert "make one output together" in error.what
    assert (error.where, error.found) == ("one, two", "7 and 9")
    assert error.fix == "surgery.replace_head(model, 9, heads=['one', 'two'])"
    error = refused(model, PlanError, 7, heads="one", example=vectors()())
    assert "no longer runs in eval mode" in error.what
    assert "one.weight" in str(error.where)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.known, self.new = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.known(x), self.new(x)], 1)


def test_heads_side_by_side_change_one_by_one() -> None:
    model = Joined()
    outcome = surgery.replace_head(model, heads={"known": 5, "new": 9}, example=vectors()())
    assert model(vectors()()).shape == (2, 14)
    outcome.undo()
    outcome = surgery.replace_head(model, heads={"new": 1}, example=vectors()())
    assert model(vectors()()).shape == (2, 4)
    assert outcome.plan.notes == ("known (3 classes) keeps its classes",)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))


def test_a_tied_head_is_refused_with_a_remedy_that_works() -> None:
    model = Tied()
    error = refused(model, PlanError, 7, heads="head", example=tokens()())
    assert "also used as an embedding" in error.what
    assert (error.where, error.found) == ("head", "tied to embedding.weight")
    assert str(error.fix).startswith("untie it first: surgery.replace(model, {'head': ")
    surgery.replace(model, {"head": nn.Linear(8, 11)}, example=tokens()())
    surgery.replace_head(model, 7, heads="head", example=tokens()())
    assert model(tokens()()).shape == (2, 6, 7)
    assert model.embedding.weight.shape == (11, 8)


class ByTable(Tied):
    """Scores words by the table that looked them up, without a layer of its own."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) @ self.embedding.weight.T


def test_a_table_that_scores_is_not_to_be_replaced_by_a_layer() -> None:
    model = ByTable()
    del model.head
    error = refused(model, PlanError, 7, heads="embedding", example=tokens()())
    assert (error.where, error.found) == ("embedding", "tied to embedding.weight")
    assert str(error.fix).startswith("let forward score by a layer of its own, torch.nn.Linear(8, ")


class Anchors(Headed):
    """Five classes for each of three anchors, in one axis of 15."""

    def __init__(self) -> None:
        super().__init__(15)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, 3, 5)


class Shuffled(nn.Module):
    """Five classes at twice the resolution, from 20 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc, self.shuffle = conv(), nn.Conv2d(8, 20, 1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.fc(self.trunk(x)))


@pytest.mark.parametrize(
    ("make", "example", "fix"),
    [
        (Anchors, vectors(), "model.num_classes = 3 or 5, whichever part of the 15 features"),
        (Shuffled, images(), "attach=True"),
    ],
    ids=["anchors", "shuffled"],
)
def test_a_layer_whose_features_are_no_axis_of_the_output_is_no_head(
    make: Callable[[], nn.Module], example: Callable[[], Any], fix: str
) -> None:
    error = refused(make(), NoHeadError, 7, example=example())
    assert "fc.weight" in str(error.found)
    assert "whose features are no axis of it" in str(error.found)
    assert fix in str(error.fix)


class Constant(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(5.0)


def test_a_size_in_the_code_is_refused_while_planning() -> None:
    error = refused(Constant(), PlanError, 7, heads="fc", example=vectors()())
    assert "no longer runs in eval mode" in error.what
    assert error.where == "fc.weight, fc.bias, fc.out_features"
    assert "RuntimeError in" in str(error.found)


class Squeezed(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def test_one_class_that_would_be_squeezed_away_is_refused_while_planning() -> None:
    model = Squeezed()
    error = refused(model, PlanError, 1, heads="fc", example=vectors()())
    assert "another form than with more" in error.what
    assert (error.expected, error.found) == ("float32[2, 1]", "float32[2]")
    surgery.replace_head(model, 2, heads="fc", example=vectors()())
    assert model(vectors()()).shape == (2, 2)


class Argmax(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_without_an_output_that_shows_classes_nothing_can_be_proven() -> None:
    error = refused(Argmax(), NoHeadError, 7, example=vectors()())
    assert "output holds integers" in str(error.found)


class Ensemble(nn.Module):
    """The weight of the head is the mean of two layers' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.one, self.two = mlp(), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.trunk(x), (self.one.weight + self.two.weight) / 2)


def test_a_weight_computed_by_several_layers_is_refused() -> None:
    error = refused(Ensemble(), PlanError, heads={"": 7}, example=vectors()())
    assert "computed by several layers" in error.what
    assert (error.where, error.found) == ("(the model itself)", "one.weight, two.weight")


class Whole(Headed):
    """A weight in whole numbers with a scale for each class."""

    def __init__(self) -> None:
        super().__init__()
        del self.fc
        weight = torch.randint(-128, 127, (5, 8), dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.trunk(x), self.weight.float()) * self.scale


def test_a_weight_in_whole_numbers_is_refused() -> None:
    error = refused(Whole(), PlanError, 7, heads="weight", example=vectors()())
    assert "whole numbers" in error.what
    assert (error.where, error.found) == ("weight", "torch.int8")
    assert "torch.nn.Linear(8, 5)" in str(error.fix)


def test_through_the_wrapper_of_torch_compile() -> None:
    inner = Headed()
    model = torch.compile(inner, backend="eager")
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert outcome.model is model
    assert inner.fc.out_features == 7
    assert outcome.undo() is model
    assert inner.fc.out_features == 5


def test_models_that_no_verb_changes() -> None:
    error = refused(nn.DataParallel(Headed()), WrappedModelError, 7, example=vectors()())
    assert "DataParallel" in error.what
    assert "model.module" in str(error.fix)
    with pytest.raises(UnsupportedModelError, match="no model"):
        surgery.replace_head(3, 7)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="lazy"):
        surgery.replace_head(nn.Sequential(nn.LazyLinear(5)), 7)


def test_the_model_that_trained_is_undone_to_the_head_it_had() -> None:
    model = Headed()
    old = {name: p.clone() for name, p in model.fc.named_parameters()}
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model(vectors()()), torch.tensor([6, 0])).backward()
    optimizer.step()
    trunk = {name: p.clone() for name, p in model.trunk.named_parameters()}
    outcome.undo()
    assert all(torch.equal(model.fc.get_parameter(name), p) for name, p in old.items())
    assert all(torch.equal(model.trunk.get_parameter(name), p) for name, p in trunk.items())


def test_a_sequence_model_of_any_length() -> None:
    model = Pair(nn.Linear(8, 8), nn.Linear(8, 5))
    surgery.replace_head(model, 7, heads="head", example=sequences()())
    for length in (1, 5, 7, 11):
        assert model(random(3, length, 8)).shape == (3, length, 7)
