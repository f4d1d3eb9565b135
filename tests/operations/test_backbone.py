"""Heads are taken out, so that features come out, and put back."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn

import surgery
from surgery.errors import ArgumentError, NoHeadError, PlanError
from surgery.families.registry import Registry
from tests.hostile import Headed, Pair, conv, images, mlp, vectors
from tests.operations.state import differences, state_of
from tests.strategies import Classifier, classifiers

NO_PLUGINS = Registry.of()


def test_features_come_out_instead_of_classes() -> None:
    model = Headed()
    expected = model.trunk(vectors()())
    outcome = surgery.remove_head(model, heads="fc", example=vectors()())
    assert outcome.model is model
    assert isinstance(model.fc, nn.Identity)
    assert torch.equal(model(vectors()()), expected)
    assert outcome.feature_size == 8
    assert outcome.plan.features == {"fc": 8}
    assert outcome.plan.parameters == (117, 72)
    assert [str(step) for step in outcome.plan.steps] == ["module fc: Linear (8 -> 5) -> Identity"]
    assert all(check.passed for check in outcome.checks)


@settings(max_examples=40)
@given(classifiers())
def test_removed_or_refused_and_put_back_bit_for_bit(drawn: Classifier) -> None:
    model, example, truth = drawn
    [address] = truth.heads
    before = state_of(model, example)
    layer = model.get_submodule(address)
    behind = [a for a in truth.follows if a.endswith(".shift") or a == "shift"]
    if behind and truth.heads[address] > 1:
        with pytest.raises(PlanError, match="one entry a class"):
            surgery.remove_head(model, heads=address, example=example, registry=NO_PLUGINS)
    else:
        outcome = surgery.remove_head(model, heads=address, example=example, registry=NO_PLUGINS)
        assert isinstance(model.get_submodule(address), nn.Identity)
        for change in outcome.plan.outputs:
            if change.path in truth.outputs:
                assert change.after.shape[truth.outputs[change.path]] == outcome.feature_size
        outcome.undo()
        assert model.get_submodule(address) is layer
    assert not differences(before, state_of(model, example))


def test_a_dry_run_touches_nothing() -> None:
    model = Headed()
    before = state_of(model)
    dry = surgery.remove_head(model, heads="fc", example=vectors()(), dry_run=True)
    assert not differences(before, state_of(model))
    assert (dry.feature_size, dry.checks) == (8, ())


def test_facts_say_that_there_are_no_classes() -> None:
    model = Headed()
    model.num_classes, model.classes = 5, list("abcde")
    outcome = surgery.remove_head(model, example=vectors()())
    assert (model.num_classes, model.classes) == (0, [])
    outcome.undo()
    assert (model.num_classes, model.classes) == (5, list("abcde"))


def test_a_removed_head_leaves_no_head_that_says_its_number() -> None:
    model = Headed()
    model.num_classes = 5
    surgery.remove_head(model, example=vectors()())
    assert not any(head.corroborated for head in surgery.find_heads(model, vectors()()))


def test_every_address_hooks_and_mode() -> None:
    model = Headed()
    model.alias = model.fc
    model.fc.eval()
    seen: list[str] = []
    handle = model.fc.register_forward_hook(lambda *_: seen.append("hook"))
    outcome = surgery.remove_head(model, heads="alias", example=vectors()())
    assert model.alias is model.fc
    assert not model.fc.training
    seen.clear()
    model(vectors()())
    handle.remove()
    model(vectors()())
    assert seen == ["hook"]
    outcome.undo()
    assert model.alias is model.fc
    assert isinstance(model.fc, nn.Linear)


def test_a_model_that_is_its_head() -> None:
    model = nn.Linear(8, 5)
    outcome = surgery.remove_head(model, heads="", example=vectors()())
    assert isinstance(outcome.model, nn.Identity)
    assert outcome.feature_size == 8
    assert outcome.undo() is model


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


def test_one_of_two_heads_and_both() -> None:
    model = Two()
    outcome = surgery.remove_head(model, heads="one", example=vectors()())
    assert [out.shape[1] for out in model(vectors()())] == [8, 3]
    outcome.undo()
    outcome = surgery.remove_head(model, heads=["one", "two"], example=vectors()())
    assert [out.shape[1] for out in model(vectors()())] == [8, 4]
    assert outcome.plan.features == {"one": 8, "two.1": 4}
    assert outcome.feature_size is None


def test_something_behind_the_head_is_refused_with_a_remedy_that_works() -> None:
    model = nn.Sequential(Headed(), nn.BatchNorm1d(5))
    with pytest.raises(PlanError, match="one entry a class") as raised:
        surgery.remove_head(model, heads="0.fc", example=vectors()())
    assert raised.value.where == "1.weight, 1.bias, 1.running_mean, 1.running_var"
    assert raised.value.fix == (
        "take those layers out first: surgery.replace(model, {'1': torch.nn.Identity()})"
    )
    surgery.replace(model, {"1": nn.Identity()}, example=vectors()())
    surgery.remove_head(model, heads="0.fc", example=vectors()())
    assert model(vectors()()).shape == (2, 8)


def test_classes_that_a_later_layer_reads_stay() -> None:
    from tests.operations.test_follow import Reading

    with pytest.raises(PlanError, match="are read by a later layer"):
        surgery.remove_head(Reading(), heads="coarse", example=vectors()())


def test_two_inputs_do_not_come_out_as_one() -> None:
    from tests.operations.test_head_values import Bilinear

    with pytest.raises(PlanError, match="'bilinear' is no layer with one input") as raised:
        surgery.remove_head(Bilinear(nn.Bilinear(8, 3, 5)), heads="head", example=vectors()())
    assert (raised.value.where, raised.value.found) == ("head", "Bilinear")
    assert raised.value.fix == "change forward to return the features"


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.weight = mlp(), nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x) @ self.weight


def test_a_bare_parameter_cannot_be_taken_out() -> None:
    with pytest.raises(PlanError, match="'parameter' is no layer") as raised:
        surgery.remove_head(Bare(), heads="weight", example=vectors()())
    assert raised.value.where == "weight"


def test_numbers_and_wrong_addresses() -> None:
    with pytest.raises(ArgumentError, match="gives them no number"):
        surgery.remove_head(Headed(), heads={"fc": 3}, example=vectors()())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no head there"):
        surgery.remove_head(Headed(), heads="trunk", example=vectors()())
    with pytest.raises(NoHeadError):
        surgery.remove_head(nn.Sequential(nn.ReLU()), example=vectors()())


def test_a_convolution_in_front_of_the_pooling() -> None:
    model = Pair(conv(3, 8), nn.Sequential(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1)))
    outcome = surgery.remove_head(model, heads="head.0", example=images()())
    assert model(images()()).shape == (2, 8, 1, 1)
    assert outcome.feature_size == 8


@pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 512), ("vgg11", 4096), ("squeezenet1_1", 512), ("googlenet", 1024)],
)
def test_backbones_of_torchvision(name: str, size: int) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    outcome = surgery.remove_head(model, example=torch.zeros(2, 3, 64, 64), registry=NO_PLUGINS)
    assert outcome.feature_size == size
    main = next(change for change in outcome.plan.outputs if change.mode == "eval")
    assert main.after.shape == (2, size)
