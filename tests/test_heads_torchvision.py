"""Heads of torchvision's models, found without a plugin; the truth is what each was built with.

Every model is built for 37 classes, a number that nothing else in it has. The head is then the
one layer of 37 outputs that ``named_modules`` shows; auxiliary ones say so in their address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from torch import nn
from torchvision import models

from surgery.families.registry import Registry, default_registry
from surgery.heads import Heads, find_heads

CLASSES = 37
NO_PLUGINS = Registry.of()
BOTH = ("eval", "train")

CLASSIFICATION = models.list_models(module=models)
SEGMENTATION = models.list_models(module=models.segmentation)
VIDEO = models.list_models(module=models.video)
QUANTIZABLE = models.list_models(module=models.quantization)
EFFICIENTNETS = [*(f"efficientnet-b{size}" for size in range(9)), "efficientnet-l2"]
WITH_AUXILIARY = ("googlenet", "inception_v3")

# One of each kind of architecture; the others are of the same code, and run with the slow tests.
QUICK = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11"),
    *("vgg16_bn", "vit_b_32", "wide_resnet50_2"),
    *("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
    *("mc3_18", "mvit_v1_b", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t"),
    *("quantized_googlenet", "quantized_inception_v3", "quantized_mobilenet_v2"),
    *("quantized_mobilenet_v3_large", "quantized_resnet18", "quantized_shufflenet_v2_x0_5"),
    *("efficientnet-b0", "efficientnet-b1"),
}


def some(names: list[str]) -> list[object]:
    slow = pytest.mark.slow
    return [name if name in QUICK else pytest.param(name, marks=slow) for name in names]


def build(name: str, **settings: object) -> nn.Module:
    # The constructor of RegNet computes on its weights, which meta tensors cannot.
    with torch.device("cpu" if "regnet" in name else "meta"):
        if "googlenet" in name or "inception" in name:
            settings = {"init_weights": False, **settings}
        if name in QUANTIZABLE:
            settings = {"quantize": False, **settings}
        return models.get_model(name, num_classes=CLASSES, **settings)


def outputs_of(layer: nn.Module) -> int | None:
    return getattr(layer, "out_features", getattr(layer, "out_channels", None))


def true_heads(model: nn.Module) -> set[str]:
    """The layers of 37 outputs, by the model's own structure."""
    found = {name for name, layer in model.named_modules() if outputs_of(layer) == CLASSES}
    assert found, "the truth is that there is a head"
    return found


def is_auxiliary(address: str) -> bool:
    return address.lower().startswith("aux")


def check(model: nn.Module, heads: Heads, axis: int = 1) -> None:
    """What holds for every head of these models."""
    assert {head.address for head in heads} == true_heads(model)
    for head in heads:
        layer = model.get_submodule(head.address)
        assert head.num_classes == CLASSES
        assert head.in_features in (
            getattr(layer, "in_features", None),
            getattr(layer, "in_channels", None),
        )
        assert head.role == ("aux" if is_auxiliary(head.address) else "main")
        assert {(output.axis, output.size) for output in head.outputs} == {(axis, CLASSES)}
        says_so = getattr(model, "num_classes", None) == CLASSES
        assert head.corroborated is says_so


@pytest.mark.parametrize("name", some([n for n in CLASSIFICATION if n not in WITH_AUXILIARY]))
def test_classification(name: str) -> None:
    model = build(name)
    heads = find_heads(model, registry=NO_PLUGINS)
    check(model, heads)
    (head,) = heads
    assert [(output.path, output.modes) for output in head.outputs] == [("output", BOTH)]


def test_there_are_as_many_models_as_are_told() -> None:
    counts = [len(names) for names in (CLASSIFICATION, SEGMENTATION, VIDEO, QUANTIZABLE)]
    assert counts == [80, 6, 9, 12]
    assert {*CLASSIFICATION, *SEGMENTATION, *VIDEO, *QUANTIZABLE, *EFFICIENTNETS} >= QUICK


@pytest.mark.parametrize("name", some(SEGMENTATION))
def test_segmentation(name: str) -> None:
    model = build(name, weights_backbone=None)
    heads = find_heads(model, registry=NO_PLUGINS)
    check(model, heads)
    places = {(output.path, output.modes) for head in heads for output in head.outputs}
    assert places == {("output['out']", BOTH)}
    # LR-ASPP adds up two heads at two resolutions.
    assert len(heads) == (2 if name.startswith("lraspp") else 1)


@pytest.mark.parametrize("name", some([n for n in SEGMENTATION if not n.startswith("lraspp")]))
def test_segmentation_with_auxiliary_loss(name: str) -> None:
    model = build(name, weights_backbone=None, aux_loss=True)
    main, auxiliary = find_heads(model, registry=NO_PLUGINS)
    check(model, Heads((main, auxiliary)))
    assert [(o.path, o.modes) for o in main.outputs] == [("output['out']", BOTH)]
    assert [(o.path, o.modes) for o in auxiliary.outputs] == [("output['aux']", BOTH)]
    assert (main.role, auxiliary.role) == ("main", "aux")


@pytest.mark.parametrize("name", some(VIDEO))
def test_video(name: str) -> None:
    model = build(name)
    check(model, find_heads(model, registry=NO_PLUGINS))


@pytest.mark.parametrize("name", some(QUANTIZABLE))
def test_quantizable_in_float(name: str) -> None:
    model = build(name)
    check(model, find_heads(model, registry=NO_PLUGINS))


@pytest.mark.parametrize("aux_logits", [False, True])
@pytest.mark.parametrize("name", WITH_AUXILIARY)
def test_auxiliary_heads_in_train_mode_only(name: str, aux_logits: bool) -> None:
    model = build(name, aux_logits=aux_logits)
    heads = find_heads(model, registry=NO_PLUGINS)
    check(model, heads)
    auxiliary = [head for head in heads if head.role == "aux"]
    (main,) = [head for head in heads if head.role == "main"]
    modes = {output.path: output.modes for output in main.outputs}
    if not aux_logits:
        assert not auxiliary
        assert modes == {"output": BOTH}
        return
    assert modes == {"output": ("eval",), "output.logits": ("train",)}
    assert len(auxiliary) == {"googlenet": 2, "inception_v3": 1}[name]
    for head in auxiliary:
        (output,) = head.outputs
        assert output.modes == ("train",)
        assert output.path.startswith("output.aux_logits")


@pytest.mark.parametrize("name", some(EFFICIENTNETS))
def test_efficientnet_pytorch(name: str) -> None:
    with torch.device("meta"):
        model = EfficientNet.from_name(name, num_classes=CLASSES)
    heads = find_heads(model, torch.zeros(2, 3, 64, 64), registry=NO_PLUGINS)
    assert {head.address for head in heads} == true_heads(model)
    (head,) = heads
    assert head.num_classes == CLASSES


def classifier(model: nn.Module) -> str:
    """The child that torchvision documents to replace: the last one that holds the head."""
    tops = {address.partition(".")[0] for address in true_heads(model)}
    (top,) = {name for name in tops if not is_auxiliary(name)}
    return top


def without_classifiers(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its whole classifier, and with its last layer only, replaced by Identity."""
    (last,) = {name for name in true_heads(model) if not is_auxiliary(name)}
    for address in {classifier(model), last}:
        parent, _, name = address.rpartition(".")
        kept = model.get_submodule(address)
        setattr(model.get_submodule(parent), name, nn.Identity())
        yield model
        setattr(model.get_submodule(parent), name, kept)


@pytest.mark.parametrize("registry", [Registry.of, default_registry], ids=["none", "installed"])
@pytest.mark.parametrize("name", some(CLASSIFICATION))
def test_without_its_classifier_nothing_is_corroborated(
    name: str, registry: Callable[[], Registry]
) -> None:
    model = build(name, **({"aux_logits": False} if name in WITH_AUXILIARY else {}))
    for trunk in without_classifiers(model):
        heads = find_heads(trunk, registry=registry())
        assert not [head.address for head in heads if head.corroborated]
        assert heads.ending


@pytest.mark.parametrize("name", WITH_AUXILIARY)
def test_auxiliary_heads_remain_where_the_classifier_is_gone(name: str) -> None:
    model = build(name)
    model.fc = nn.Identity()
    heads = find_heads(model, registry=NO_PLUGINS)
    remaining = {h.address for h in heads if h.num_classes == CLASSES}
    assert remaining == {address for address in true_heads(model) if is_auxiliary(address)}
    assert not [head.address for head in heads if head.corroborated]
