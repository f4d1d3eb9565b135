"""Heads of torchvision's models are replaced without a plugin, in both modes, and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torchvision import models

import surgery
from surgery import tree
from surgery.errors import PlanError
from surgery.graph.example import Example
from surgery.operations.plan import Outcome
from surgery.recording import resolve_example
from tests.hostile import leaves
from tests.test_heads_torchvision import (
    CLASSES,
    CLASSIFICATION,
    EFFICIENTNETS,
    NO_PLUGINS,
    QUANTIZABLE,
    SEGMENTATION,
    VIDEO,
    WITH_AUXILIARY,
    build,
    some,
    true_heads,
)

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

BACKBONE = {"weights_backbone": None}


def shapes(model: nn.Module, example: Example, training: bool) -> dict[str, list[int]]:
    """The shapes of what a model on meta gives."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    args = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in example.args]
    try:
        found = leaves(model(*args, **example.kwargs))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {path: list(leaf.shape) for path, leaf in found.items()}


def check(model: nn.Module, classes: int = 7, *, heads: Any = None) -> Outcome:
    """Replace, compare what really comes out in both modes, undo, compare identities."""
    model = model.to("meta")
    example = resolve_example(model, None, registry=NO_PLUGINS)
    truth = true_heads(model)
    tensors = {a: e.tensor for e in tree.index(model).tensors.values() for a in e.addresses}
    before = {training: shapes(model, example, training) for training in (False, True)}
    outcome = surgery.replace_head(
        model, classes, heads=heads, example=example, registry=NO_PLUGINS
    )
    assert set(outcome.plan.probes) == truth
    assert {change.mode for change in outcome.plan.outputs} == {"eval", "train"}
    for training, old in before.items():
        new = shapes(model, example, training)
        wanted = {
            path: [classes if size == CLASSES else size for size in shape]
            for path, shape in old.items()
        }
        assert new == wanted
        assert wanted != old
    for address, tensor in tensors.items():
        head = any(address.startswith(f"{place}.") for place in truth)
        assert (tree.get(model, address) is tensor) is not head
    assert outcome.undo() is model
    assert all(tree.get(model, address) is tensor for address, tensor in tensors.items())
    assert true_heads(model) == truth
    return outcome


@pytest.mark.parametrize("name", some([n for n in CLASSIFICATION if n not in WITH_AUXILIARY]))
def test_classification(name: str) -> None:
    check(build(name))


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("name", WITH_AUXILIARY)
def test_auxiliary_heads_of_train_mode(name: str, auxiliary: bool) -> None:
    outcome = check(build(name, aux_logits=auxiliary))
    paths = {mode: set() for mode in ("eval", "train")}
    for change in outcome.plan.outputs:
        assert change.class_axes == (1,)
        paths[change.mode].add(change.path)
    fields = {"googlenet": 3, "inception_v3": 2}[name] if auxiliary else 1
    assert {mode: len(found) for mode, found in paths.items()} == {"eval": 1, "train": fields}


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("name", some(SEGMENTATION))
def test_segmentation(name: str, auxiliary: bool) -> None:
    lraspp = name.startswith("lraspp")
    if lraspp and auxiliary:
        with pytest.raises((TypeError, NotImplementedError)):
            build(name, **BACKBONE, aux_loss=True)
        return
    check(build(name, **BACKBONE, **({} if lraspp else {"aux_loss": auxiliary})))


@pytest.mark.parametrize("name", some(VIDEO))
def test_video(name: str) -> None:
    check(build(name))


@pytest.mark.parametrize("name", some(QUANTIZABLE))
def test_quantizable_in_float(name: str) -> None:
    check(build(name))


@pytest.mark.parametrize("name", some(EFFICIENTNETS))
def test_efficientnet_pytorch(name: str) -> None:
    with torch.device("meta"):
        model = EfficientNet.from_name(name, num_classes=CLASSES)
    outcome = check(model)
    assert model._global_params.num_classes == CLASSES
    assert any(step.address == "_global_params.num_classes" for step in outcome.plan.steps)


@pytest.mark.parametrize("classes", [1, 2, CLASSES, 224, 512, 1000])
def test_any_number_of_classes(classes: int) -> None:
    """Of the batch, of the image, of the features, and the old one."""
    model = build("resnet18")
    example = Example.of(torch.zeros(2, 3, 224, 224))
    outcome = surgery.replace_head(model, classes, example=example, registry=NO_PLUGINS)
    assert {c.class_axes for c in outcome.plan.outputs} == {(1,)}
    for training in (False, True):
        assert shapes(model, example, training) == {"output": [2, classes]}


def test_one_of_two_heads_that_are_added_up_is_refused() -> None:
    model = build("lraspp_mobilenet_v3_large", **BACKBONE)
    heads = sorted(true_heads(model))
    with pytest.raises(PlanError, match="no longer runs"):
        surgery.replace_head(model, 7, heads=heads[0], registry=NO_PLUGINS)
    assert sorted(true_heads(model)) == heads


def test_auxiliary_heads_stay_where_only_the_main_one_is_asked_for() -> None:
    model = build("googlenet", aux_logits=True)
    outcome = surgery.replace_head(model, 7, heads="fc", registry=NO_PLUGINS)
    assert outcome.plan.notes == (
        "aux2.fc2 (37 classes) keeps its classes",
        "aux1.fc2 (37 classes) keeps its classes",
    )
    assert model.aux1.fc2.out_features == CLASSES


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_what_the_head_is_given_stays_bit_for_bit(name: str) -> None:
    """On real weights and a real image, up to the head, before and after."""
    torch.manual_seed(0)
    model = models.get_model(name).eval()
    [address] = [n for n, layer in model.named_modules() if classes_of(layer) == 1000]
    image, seen = torch.randn(2, 3, 64, 64), []
    model.get_submodule(address).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    with torch.no_grad():
        before = model(image)
        outcome = surgery.replace_head(model, 7, example=image, registry=NO_PLUGINS)
        assert model(image).shape == (2, 7)
        outcome.undo()
        after = model(image)
    assert torch.equal(seen[0], seen[-1])
    assert all(torch.equal(seen[0], each) for each in seen if not each.is_meta)
    assert torch.equal(before, after)


def classes_of(layer: nn.Module) -> Any:
    return getattr(layer, "out_features", getattr(layer, "out_channels", None))
