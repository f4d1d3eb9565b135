"""Quantised models: the head becomes a float layer behind the quantised trunk, or says why not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from surgery_plugins import quantizable
from torch import nn
from torch.ao import quantization
from torch.ao.nn import quantized
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchvision.models import quantization as zoo

import surgery
from surgery.errors import ArgumentError, PlanError
from surgery.families import HeadKind
from surgery.families.plugin import Plugin
from surgery.families.registry import Registry
from surgery.heads import Head, find_heads

REGISTRY = Registry(
    [Plugin("quantizable", families=quantizable.FAMILIES, head_kinds=(quantizable.QUANTISED,))]
)
BARE = Registry.of()
IMAGE = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Torch deprecates the quantisation that its own models are built with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantiz")
        warnings.filterwarnings("ignore", message=".*[Oo]bserver")
        yield


def plain(head: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    ).eval()


def by_hand(head: nn.Module | None = None) -> nn.Module:
    model = quantization.QuantWrapper(plain(head or nn.Linear(8, 5)))
    model.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(model, inplace=True)
    model(IMAGE)
    return quantization.convert(model)


def by_graph(model: nn.Module | None = None) -> nn.Module:
    model = plain(nn.Linear(8, 5)) if model is None else model
    mapping = quantization.get_default_qconfig_mapping("x86")
    prepared = prepare_fx(model, mapping, (IMAGE,))
    prepared(IMAGE)
    return convert_fx(prepared)


def dynamically(**chosen: object) -> nn.Module:
    spec = set(chosen.values()) or {nn.Linear}
    return quantization.quantize_dynamic(plain(nn.Linear(8, 5)), spec)


def partly() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    return quantization.quantize_dynamic(model, {"3": quantization.default_dynamic_qconfig})


def built(name: str) -> Callable[[], nn.Module]:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return lambda: getattr(zoo, name)(weights=None, quantize=True, num_classes=11, **options)


MADE = {
    "by hand": (by_hand, ("module.4",)),
    "by graph": (by_graph, ("4",)),
    "dynamically": (dynamically, ("4",)),
    "partly": (partly, ("3",)),
}
BUILT = {
    "resnet18": ("fc",),
    "shufflenet_v2_x0_5": ("fc",),
    "mobilenet_v2": ("classifier.1",),
    "mobilenet_v3_large": ("classifier.3",),
    "googlenet": ("fc", "aux1.fc2", "aux2.fc2"),
    "inception_v3": ("fc", "AuxLogits.fc"),
}
QUICK = {"shufflenet_v2_x0_5"}
EVERY = [pytest.param(make, heads, IMAGE, id=name) for name, (make, heads) in MADE.items()] + [
    pytest.param(
        built(name),
        heads,
        torch.randn(2, 3, *(2 * [299 if name == "inception_v3" else 64])),
        id=name,
        marks=() if name in QUICK else pytest.mark.slow,
    )
    for name, heads in BUILT.items()
]


def answers(model: nn.Module, image: torch.Tensor, head: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out, and what the layer at an address is given."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(head)
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        out = model.eval()(image)
    handle.remove()
    given = seen[0]
    return out, given.int_repr() if given.is_quantized else given


def weights(model: nn.Module, heads: tuple[str, ...]) -> list[torch.Tensor]:
    return [model.get_submodule(head).weight().int_repr() for head in heads]


@pytest.mark.parametrize(("make", "heads", "image"), EVERY)
def test_a_quantised_head_becomes_a_float_one_and_comes_back(
    make: Callable[[], nn.Module], heads: tuple[str, ...], image: torch.Tensor
):
    model = make()
    found = find_heads(model, image, registry=REGISTRY)
    assert tuple(head.address for head in found) == heads
    assert {head.kind for head in found} == {"packed"}
    layers = [model.get_submodule(head) for head in heads]
    packed = weights(model, heads)
    held = sum(p.numel() for p in model.parameters())
    before, features = answers(model, image, heads[0])

    options = {"heads": heads, "example": image, "registry": REGISTRY}
    if isinstance(model, torch.fx.GraphModule):
        with pytest.raises(PlanError, match="could not be trained"):
            surgery.replace_head(model, 7, **options)
        options["trainable"] = False
    outcome = surgery.replace_head(model, 7, **options)
    after, same_features = answers(model, image, heads[0])
    assert (after.shape, after.dtype) == ((2, 7), torch.float32)
    assert torch.equal(features, same_features), "the trunk answers what it did"
    added = sum(p.numel() for p in model.parameters()) - held
    assert added == sum(head.in_features * 7 + 7 for head in found)
    if "trainable" not in options:
        model(image).square().sum().backward()
        gradients = [p.grad for p in model.get_submodule(heads[0]).parameters()]
        assert sum(gradient.abs().sum() for gradient in gradients) > 0

    assert surgery.find_heads(model, image, registry=REGISTRY)[0].kind == "linear"
    outcome.undo()
    assert all(model.get_submodule(h) is layer for h, layer in zip(heads, layers, strict=True))
    assert all(map(torch.equal, weights(model, heads), packed))
    again, _ = answers(model, image, heads[0])
    assert torch.equal(before, again)


def test_a_head_of_a_convolution_and_one_with_its_nonlinearity_inside():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3, stride=2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).relu())

    model = by_graph(Dense().eval())
    options = {"example": IMAGE, "registry": REGISTRY, "trainable": False}
    outcome = surgery.replace_head(model, 7, heads="head", **options)
    new = model.head[1]
    assert (new.stride, new.kernel_size, new.bias) == ((2, 2), (3, 3), None)
    assert model(IMAGE).shape[1] == 7
    outcome.undo()

    relu = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    relu = by_graph(nn.Sequential(*relu, nn.Linear(8, 5), nn.ReLU()).eval())
    (head,) = find_heads(relu, IMAGE, registry=REGISTRY)
    surgery.replace_head(relu, 7, heads=head.address, **options)
    answer = relu(IMAGE)
    assert answer.shape == (2, 7)
    assert (answer >= 0).all()


def test_without_the_plugin_it_is_refused_and_the_remedy_runs():
    for make, (address,) in MADE.values():
        model = make()
        before, features = answers(model, IMAGE, address)
        with pytest.raises(PlanError, match="packed") as caught:
            surgery.replace_head(model, 7, heads=address, example=IMAGE, registry=BARE)
        assert torch.equal(model(IMAGE), before)
        remedy = caught.value.fix
        if isinstance(model, torch.fx.GraphModule):
            assert remedy == "surgery.replace_head(model, 7), and then quantise the model"
            continue
        assert remedy.startswith("surgery.replace(model, {")
        call = f"{remedy.removesuffix(')')}, example=IMAGE)"
        outcome = eval(call, {"surgery": surgery, "torch": torch, "model": model, "IMAGE": IMAGE})
        after, same_features = answers(model, IMAGE, address)
        assert after.shape == (2, 7)
        assert torch.equal(features, same_features)
        model(IMAGE).sum().backward()
        outcome.undo()
        assert torch.equal(model(IMAGE), before)


def test_a_packed_weight_that_no_layer_holds_is_refused():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x.mean((2, 3)), self.weight)

    model = by_graph(Bare().eval())
    before = model(IMAGE)
    with pytest.raises(PlanError, match="packed") as caught:
        surgery.replace_head(model, 7, heads="", example=IMAGE, registry=REGISTRY)
    assert caught.value.fix == "surgery.replace_head(model, 7), and then quantise the model"
    assert torch.equal(model(IMAGE), before)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"hidden": (4,)}, PlanError),
        ({"dropout": 0.5}, PlanError),
        ({"keep": {0: 1}}, ArgumentError),
    ],
)
def test_what_a_packed_head_cannot_do_is_said_before_anything_is_touched(
    options: dict[str, object], error: type[Exception]
):
    model = by_hand()
    before = model(IMAGE)
    with pytest.raises(error):
        surgery.replace_head(
            model, 7, heads="module.4", example=IMAGE, registry=REGISTRY, **options
        )
    assert torch.equal(model(IMAGE), before)


def test_the_head_can_be_taken_out_and_put_back():
    model = by_hand()
    before = model(IMAGE)
    outcome = surgery.remove_head(model, heads="module.4", example=IMAGE, registry=REGISTRY)
    assert (outcome.feature_size, model(IMAGE).shape) == (8, (2, 8))
    outcome.undo()
    assert torch.equal(model(IMAGE), before)


def test_reading_verbs_and_freezing_take_a_quantised_model():
    for make, _ in MADE.values():
        model = make()
        assert surgery.audit(model).packed > 0
        assert "Linear" in str(surgery.summary(model, IMAGE))
        outcome = surgery.freeze(model)
        assert not any(p.requires_grad for p in model.parameters())
        outcome.undo()


def test_a_quantised_trunk_without_a_head_is_none():
    model = built("resnet18")()
    surgery.replace(model, {"fc": nn.Identity()}, registry=REGISTRY)
    heads = find_heads(model, registry=REGISTRY)
    assert not [head for head in heads if head.corroborated]


def test_a_model_without_floating_state_takes_a_float_layer_where_values_steer():
    class Steered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum().item() < 1e9 else x

    model = Steered()
    surgery.replace(model, {"layer": nn.Linear(4, 3)}, example=torch.ones(2, 4))
    assert model(torch.ones(2, 4)).shape == (2, 3)


def test_another_plugin_may_rebuild_quantised_heads_its_own_way():
    def rebuild(layer: nn.Module, num_classes: int) -> nn.Module:
        return nn.Sequential(quantized.DeQuantize(), nn.Linear(8, num_classes, bias=False))

    kind = HeadKind("mine", ("torch.ao.nn.quantized.modules.linear.Linear",), rebuild)
    model = by_hand()
    registry = Registry([Plugin("mine", head_kinds=(kind,))])
    outcome = surgery.replace_head(model, 7, heads="module.4", example=IMAGE, registry=registry)
    assert copy.deepcopy(outcome.plan.parameters) == (0, 56)


def test_the_float_layer_is_said_to_be_one():
    model = by_hand()
    outcome = surgery.replace_head(
        model, 7, heads="module.4", example=IMAGE, registry=REGISTRY, dry_run=True
    )
    assert "quantised layer" in str(outcome.plan)
    assert isinstance(find_heads(model, IMAGE, registry=REGISTRY)[0], Head)
