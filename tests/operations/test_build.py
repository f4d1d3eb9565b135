"""Building: from a name or a callable, with weights or without, equal to the slow way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from surgery_plugins import efficientnet_pytorch, googlenet, resnet, squeezenet
from torch import nn

import surgery
from surgery.errors import (
    ArgumentError,
    CoverageError,
    PlanError,
    SurgeryError,
    UndoError,
    UnsupportedModelError,
    WeightsError,
)
from surgery.families import Family
from surgery.families.registry import Registry
from surgery.operations.head import replace_head
from surgery.operations.names import remembered
from tests import constructors
from tests.test_deferred import Executed, assert_equal

FAMILIES = Registry.of(
    resnet.FAMILY, googlenet.FAMILY, squeezenet.FAMILY,
    efficientnet_pytorch.FAMILY,
)  # fmt: skip
SMALL = "torchvision:squeezenet1_1"


def build(target: Any, **settings: Any) -> surgery.Outcome:
    return surgery.build(target, **{"registry": FAMILIES, **settings})


def network(num_classes: int = 4, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(
            width * 36, num_classes
        ),
    )  # fmt: skip


def fixed() -> nn.Module:
    """It takes no number of classes."""
    return network()


def lenient(**settings: object) -> nn.Module:
    """It takes whatever it is given, and makes nothing of it."""
    return network()


EXAMPLE = torch.zeros(2, 3, 8, 8)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Values that no initialiser makes, statistics and counters too."""
    torch.manual_seed(9)
    model = network()
    for parameter in model.parameters():
        parameter.data.normal_(3)
    model(torch.randn(4, 3, 8, 8))
    return model


@pytest.fixture(scope="module", params=["pth", "safetensors", "mapping", "model"])
def source(
    request: pytest.FixtureRequest, trained: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> object:
    path = tmp_path_factory.mktemp("weights") / f"network.{request.param}"
    if request.param == "pth":
        torch.save(trained.state_dict(), path)
    elif request.param == "safetensors":
        safetensors.torch.save_file(trained.state_dict(), path)
    else:
        return trained if request.param == "model" else trained.state_dict()
    return path


@pytest.mark.parametrize(
    ("target", "options", "slow"),
    [
        (SMALL, {}, torchvision.models.squeezenet1_1),
        ("resnet18", {}, torchvision.models.resnet18),
        ("resnet:resnet18", {"zero_init_residual": True}, torchvision.models.resnet18),
        ("torch.nn:Linear", {"in_features": 3, "out_features": 2}, nn.Linear),
        ("tests.constructors:buffers", {}, constructors.buffers),
        (constructors.dry_run, {}, constructors.dry_run),
        (nn.LSTM, {"input_size": 3, "hidden_size": 4}, nn.LSTM),
    ],
)
def test_without_weights_it_is_what_the_constructor_makes(
    target: Any, options: dict[str, Any], slow: Callable[..., nn.Module]
):
    torch.manual_seed(4)
    expected = slow(**options)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    outcome = build(target, **options)
    assert_equal(expected, outcome.model)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(check.passed for check in outcome.checks)


@pytest.mark.parametrize("mmap", [False, True])
def test_with_weights_it_is_what_loading_makes(source: object, trained: nn.Module, mmap: bool):
    before = torch.get_rng_state()
    with Executed() as executed:
        model = build(network, weights=source, mmap=mmap).model
    assert torch.equal(torch.get_rng_state(), before)
    assert executed.random == []
    assert_equal(trained, model)
    loss = model(torch.randn(2, 3, 8, 8)).sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not torch.equal(model[4].weight, trained[4].weight)


def test_a_file_is_not_written_to_where_it_is_mapped(trained: nn.Module, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    before = path.read_bytes()
    model = build(network, weights=path, mmap=True).model
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert path.read_bytes() == before


def test_the_callers_own_tensors_stay_theirs(trained: nn.Module):
    state = trained.state_dict()
    copied = copy.deepcopy(state)
    model = build(network, weights=state).model
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert list(state) == list(copied)
    assert all(torch.equal(state[key], copied[key]) for key in state)


def test_tensors_that_a_file_ties_are_apart_where_the_model_has_them_apart(tmp_path: Path):
    flat = torch.arange(20.0)
    torch.save({"0.weight": flat[:9].view(3, 3), "1.weight": flat[4:13].view(3, 3)}, tmp_path / "a")
    shared = torch.rand(3, 3)
    torch.save({"0.weight": shared, "1.weight": shared}, tmp_path / "b")

    def twice() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))

    for name in ("a", "b"):
        for mmap in (False, True):
            model = build(twice, weights=tmp_path / name, mmap=mmap).model
            expected = torch.load(tmp_path / name, weights_only=True)
            assert torch.equal(model[0].weight, expected["0.weight"])
            with torch.no_grad():
                model[0].weight.zero_()
            assert torch.equal(model[1].weight, expected["1.weight"])


def test_ties_of_the_model_stay_ties():
    with pytest.warns(UserWarning, match="not in the source"):
        model = build(constructors.tied, weights={"0.weight": torch.ones(5, 4)}).model
    assert model[0].weight is model[1].weight
    assert model[1].weight.sum() == 20


def test_other_dtypes_are_converted_and_channels_last_stays(trained: nn.Module):
    def last() -> nn.Module:
        return network().to(memory_format=torch.channels_last)

    state = {
        key: value.double() if value.is_floating_point() else value
        for key, value in trained.state_dict().items()
    }
    model = build(last, weights=state).model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model[0].weight, trained[0].weight)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_what_a_constructor_puts_on_meta_is_filled_by_weights_alone(trained: nn.Module):
    def elsewhere() -> nn.Module:
        with torch.device("meta"):
            return network()

    assert_equal(trained, build(elsewhere, weights=trained).model)
    outcome = build(elsewhere)
    assert all(parameter.is_meta for parameter in outcome.model.parameters())
    assert any("constructed on meta" in check.finding for check in outcome.checks)


def test_a_model_built_in_inference_mode_can_be_trained(trained: nn.Module):
    with torch.inference_mode():
        model = build(network, weights={**trained.state_dict()}).model
        drawn = build(network).model
    for each in (model, drawn):
        each(torch.randn(2, 3, 8, 8)).sum().backward()
        assert each[4].weight.grad is not None


def test_what_shares_memory_with_another_tensor_is_written_in_place():
    state = {
        "0.weight": torch.full((4, 4), 2.0),
        "0.bias": torch.ones(4),
        "0.again": torch.ones(4),
        "1.weight": torch.zeros(2, 2),
        "1.bias": torch.zeros(2),
    }
    model = build(constructors.aliased, weights=state).model
    assert model[0].seen.sum() == 32
    assert model[0].again.data_ptr() == model[0].bias.data_ptr()


def test_what_does_not_fit_is_initialised_by_the_constructors_own_initialiser(tmp_path: Path):
    slow = torchvision.models.googlenet(init_weights=False)
    state = slow.state_dict()
    path = tmp_path / "googlenet.pth"
    torch.save(state, path)
    outcome = build("torchvision:googlenet", num_classes=5, weights=path, init_weights=True)
    model = outcome.model
    new = {
        f"{head}.{part}" for head in ("fc", "aux1.fc2", "aux2.fc2") for part in ("weight", "bias")
    }
    assert {
        note.removeprefix("initialised: ")
        for note in outcome.plan.notes
        if note.startswith("initialised: ")
    } == new
    for key, value in model.state_dict().items():
        assert (value.shape == state[key].shape and torch.equal(value, state[key])) == (
            key not in new
        ), key
    # Normal, with a deviation of 0.01; reset_parameters is uniform up to 0.031.
    assert 0.0095 < model.fc.weight.std() < 0.0105
    assert model.fc.weight.abs().max() > 0.032


def test_the_number_of_classes_is_handed_to_a_callable_that_takes_it():
    outcome = build(network, num_classes=7, example=EXAMPLE)
    assert outcome.model(EXAMPLE).shape == (2, 7)
    assert outcome.plan.steps == ()
    assert any(check.name == "classes" for check in outcome.checks)
    torch.manual_seed(2)
    slow = network(7)
    torch.manual_seed(2)
    assert_equal(slow, build(network, num_classes=7, example=EXAMPLE).model)


@pytest.mark.parametrize("target", [fixed, lenient])
def test_heads_are_replaced_where_the_callable_does_not_see_to_it(target: Any, trained: nn.Module):
    with pytest.warns(surgery.errors.UncorroboratedWarning):
        outcome = build(target, num_classes=7, example=EXAMPLE, weights=trained)
    assert outcome.model(EXAMPLE).shape == (2, 7)
    assert torch.equal(outcome.model[0].weight, trained[0].weight)
    assert [step.address for step in outcome.plan.steps] == ["4.weight", "4.bias", "4.out_features"]
    assert all(check.passed for check in outcome.checks)


@pytest.mark.parametrize("target", ["googlenet", "squeezenet1_1", "efficientnet-b0"])
def test_where_a_family_knows_the_heads_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, target: str
):
    recorded: list[nn.Module] = []
    monkeypatch.setattr(
        surgery.survey, "record_graph", lambda model, *_, **__: recorded.append(model)
    )
    outcome = build(target, num_classes=7)
    heads = FAMILIES.claim(outcome.model).heads
    (check,) = [check for check in outcome.checks if check.name == "classes"]
    assert not recorded
    assert heads
    assert "family" in check.finding
    assert all(claim.address in check.finding for claim in heads)


def test_a_head_of_another_size_than_was_asked_for_is_replaced_where_a_family_knows_it():
    def stubborn(num_classes: int = 4) -> nn.Module:
        return torchvision.models.resnet18(num_classes=4)

    outcome = build(stubborn, num_classes=7)
    assert outcome.model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert [step.address for step in outcome.plan.steps if "weight" in step.address] == [
        "fc.weight"
    ]


def test_what_cannot_be_proven_is_said():
    def odd(num_classes: int = 4) -> nn.Module:
        return nn.ParameterList([torch.zeros(num_classes)])

    outcome = build(odd, num_classes=7)
    assert outcome.model[0].shape == (7,)
    assert any("not verified" in note for note in outcome.plan.notes)


def test_what_was_left_out_is_one_warning_and_a_new_number_of_classes_none(trained: nn.Module):
    state = trained.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(network, num_classes=6, weights=state, example=EXAMPLE)
    missing = {key: value for key, value in state.items() if key != "0.bias"}
    with pytest.warns(UserWarning, match=r"1 tensor \(0.bias\)") as caught:
        build(network, weights=missing)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="skipped for another shape"):
        build(network, width=16, weights=state, min_coverage=0)


def test_building_is_shown_and_cannot_be_undone(trained: nn.Module):
    outcome = build(network, weights=trained)
    shown = surgery.report(outcome)
    assert "every tensor has values" in str(shown)
    with pytest.raises(UndoError):
        outcome.undo()


@pytest.mark.parametrize(
    ("target", "settings", "error", "says"),
    [
        ("torchvision:resnet5O", {}, ArgumentError, "torchvision:resnet50"),
        ("resnet5O", {}, ArgumentError, "torchvision:resnet50"),
        ("efficientnet-b99", {}, ArgumentError, "efficientnet-b"),
        ("no.such.module:thing", {}, ArgumentError, "No module named"),
        ("math:pi", {}, ArgumentError, "builds nothing"),
        ("not an identifier:x", {}, ArgumentError, "nothing can be imported"),
        (17, {}, ArgumentError, "builds nothing"),
        (nn.ReLU(), {}, ArgumentError, "a model already"),
        (dict, {}, UnsupportedModelError, "no model"),
        (nn.LazyLinear, {"out_features": 2}, UnsupportedModelError, "lazy"),
        (network, {"depth": 3}, PlanError, "unexpected keyword"),
        (network, {"width": -1}, PlanError, "the constructor raised"),
        (network, {"num_classes": 0}, SurgeryError, "num_classes"),
        (network, {"num_classes": "7"}, SurgeryError, "num_classes"),
        (network, {"generator": 3}, ArgumentError, "source of random numbers"),
        (network, {"weights": "no-such-file.pth"}, WeightsError, "no such file"),
        (network, {"weights": {"a": torch.zeros(1)}}, CoverageError, "too little"),
        (network, {"weights": 5}, ArgumentError, "weights cannot be read"),
        (fixed, {"weights": network(9), "on_mismatch": "error"}, PlanError, "not by shape"),
        (fixed, {"weights": network(9), "on_mismatch": "adapt"}, ArgumentError, "being built"),
    ],
)
def test_a_mistake_is_explained_and_no_number_is_drawn(
    target: Any, settings: dict[str, Any], error: type[SurgeryError], says: str
):
    before = torch.get_rng_state()
    with pytest.raises(error) as caught:
        build(target, **settings)
    assert says in str(caught.value)
    assert caught.value.fix
    assert torch.equal(torch.get_rng_state(), before)


def test_one_name_in_two_catalogs_needs_its_family():
    one, other = (
        Family(name=name, classes=(f"p.{name}.Net",), catalog={"net": "tests.constructors:tied"})
        for name in ("one", "other")
    )
    registry = Registry.of(one, other)
    with pytest.raises(ArgumentError, match="2 catalogs") as caught:
        build("net", registry=registry)
    assert "surgery.build('other:net')" in str(caught.value)
    assert isinstance(build("other:net", registry=registry).model, nn.Sequential)


def test_a_package_that_is_not_installed_is_named():
    family = Family(
        name="absent", classes=("absent_package.Net",), packages=("absent_package",),
        catalog={"net": "absent_package:net"},
    )  # fmt: skip
    with pytest.raises(PlanError, match="pip install absent-package"):
        build("absent:net", registry=Registry.of(family))


def test_every_name_of_the_catalogs_is_one_that_build_takes():
    names = FAMILIES.catalog_names
    assert "torchvision:resnet50" in names
    assert "efficientnet_pytorch:efficientnet-b7" in names
    assert len(names) == len(set(names))


class Wire:
    """What stands in for the net: the address that was asked for, and the bytes it answers."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, url: str, path: str, hash_prefix: str | None, progress: bool) -> None:
        self.asked.append((url, hash_prefix))
        torch.save(self.state, path)


def test_published_weights_are_downloaded_once_and_their_class_names_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    slow = torchvision.models.squeezenet1_1()
    wire = Wire(slow.state_dict())
    monkeypatch.setattr("torch.hub.download_url_to_file", wire)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    model = build(SMALL, weights=entry).model
    assert_equal(slow, model)
    assert remembered(model) == tuple(entry.meta["categories"])
    mapped = build(SMALL, weights=entry, mmap=True).model
    assert_equal(slow, mapped)
    assert wire.asked == [(entry.url, "b8a52dc0")]
    row = mapped.classifier[1].weight[0].detach().clone()
    names = ["something new", entry.meta["categories"][0]]
    image = torch.zeros(2, 3, 64, 64)
    replace_head(mapped, classes=names, keep="all", example=image, heads="classifier.1")
    assert torch.equal(mapped.classifier[1].weight[1], row)
    other = build(SMALL, weights=entry, num_classes=5, example=torch.zeros(2, 3, 64, 64)).model
    assert remembered(other) is None, "its classes are others"


def test_a_download_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*args: object, **settings: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="no route to host"):
        build(SMALL, weights=torchvision.models.SqueezeNet1_1_Weights.DEFAULT)


def test_an_entry_without_an_address_is_asked_for_its_state(trained: nn.Module):
    entry = SimpleNamespace(get_state_dict=trained.state_dict, meta={"categories": ["a", "b"]})
    model = build(network, weights=entry).model
    assert_equal(trained, model)
    assert remembered(model) == ("a", "b")


def test_a_plugin_adds_names():
    point = EntryPoint("resnet", "surgery_plugins.resnet", "surgery")
    registry = Registry.load([point])
    model = build("torchvision:resnet18", registry=registry, num_classes=3).model
    assert model.fc.out_features == 3
