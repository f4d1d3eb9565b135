"""Checkpoint dialects: renamed by a family's rules, the weights of another implementation work."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping

import pytest
import torch
import torchvision
from efficientnet_pytorch import EfficientNet
from surgery_plugins import (
    densenet,
    efficientnet,
    efficientnet_pytorch,
    inception,
    resnet,
    swin,
    vision_transformer,
)
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet, _load_state_dict
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from surgery.families.family import Family, Rules
from surgery.weights.match import match
from surgery.weights.memory import describe
from surgery.weights.value import TensorInfo
from surgery.weights.verdicts import Matching

Infos = Mapping[str, TensorInfo]


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    result = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = tensor
    assert len(result) == len(state)
    return result


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_the_names_of_2017_that_torchvisions_own_densenet_files_still_hold():
    made = DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, num_classes=3)
    state = made.state_dict()
    inner = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    legacy = {inner.sub(r"\1.\2.", key): tensor.clone() for key, tensor in state.items()}
    assert not same(legacy, state)

    class File:
        def get_state_dict(self, **options: object) -> dict[str, Tensor]:
            return {key: legacy[key] for key in legacy if not key.endswith("num_batches_tracked")}

    other = DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, num_classes=3)
    _load_state_dict(other, File(), progress=False)
    assert same(other.state_dict(), state), "torchvision reads these names as the same weights"
    assert same(renamed(legacy, densenet.FAMILY.renames["torchvision legacy"]), state)


def test_the_names_of_vision_transformers_before_the_mlp_was_numbered():
    made = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)
    state = dict(made.state_dict())
    old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    legacy = {
        re.sub(r"\.mlp\.[03]\.", lambda match: old[match[0]], key): tensor.clone()
        for key, tensor in state.items()
    }
    assert not same(legacy, state)
    other = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)
    other.load_state_dict(legacy)
    assert same(other.state_dict(), state), "torchvision reads these names as the same weights"
    rules = vision_transformer.FAMILY.renames["torchvision legacy"]
    assert same(renamed(legacy, rules), state)


def test_vision_transformers_of_timm_give_the_same_output():
    timm = pytest.importorskip("timm.models.vision_transformer")
    donor = timm.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=7
    )
    model = VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=7)
    rules = vision_transformer.FAMILY.renames["timm"]
    model.load_state_dict(renamed(donor.state_dict(), rules), strict=True)
    answers_alike(model, donor, torch.randn(2, 3, 32, 32))


def test_swin_transformers_of_timm_give_the_same_output():
    timm = pytest.importorskip("timm.models.swin_transformer")
    donor = timm.SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=2,
        embed_dim=8,
        depths=(1, 2, 1, 1),
        num_heads=(2, 2, 2, 2),
        num_classes=7,
    )
    model = SwinTransformer([4, 4], 8, [1, 2, 1, 1], [2, 2, 2, 2], [2, 2], num_classes=7)
    state = renamed(donor.state_dict(), swin.FAMILY.renames["timm"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert {key.rpartition(".")[2] for key in missing} == {"relative_position_index"}
    assert unexpected == []
    answers_alike(model, donor, torch.randn(2, 3, 64, 64))


def answers_alike(model: torch.nn.Module, donor: torch.nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        torch.nn.init.normal_(donor.get_classifier().weight)
        head = model.heads.head if isinstance(model, VisionTransformer) else model.head
        head.load_state_dict(donor.get_classifier().state_dict())
        found, wanted = model.eval()(image), donor.eval()(image)
    assert wanted.std() > 0.1
    assert torch.allclose(found, wanted, atol=1e-4)


def test_timm_names_the_layers_of_densenet_and_inception_as_torchvision_does():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        for name, model in (
            ("densenet121", torchvision.models.densenet121()),
            ("inception_v3", torchvision.models.inception_v3(init_weights=False)),
        ):
            aside = {key for key in model.state_dict() if key.startswith("AuxLogits.")}
            keys = set(timm.create_model(name).state_dict())
            assert keys | aside == set(model.state_dict())


def infos(build: Callable[..., nn.Module], *args: object, **options: object) -> Infos:
    with torch.device("meta"):
        return describe(build(*args, **options).state_dict())


def read_with(family: Family, model: Infos, source: Infos) -> Matching:
    """Matched with the family's dialects, bare and inside the wrappers of a training script."""
    matching = match(model, source, dialects=family.renames)
    wrapped = {f"module.model.{key}": info for key, info in source.items()}
    again = match(model, wrapped, dialects=family.renames)
    assert again.dialect == matching.dialect
    assert dict(again.pairs) == {
        key: f"module.model.{name}" for key, name in matching.pairs.items()
    }
    return matching


@pytest.mark.parametrize("module", ["densenet", "inception", "googlenet", "efficientnet_pytorch"])
def test_a_models_own_keys_need_no_dialect(module: str):
    family = importlib.import_module(f"surgery_plugins.{module}").FAMILY
    name, target = next(iter(family.catalog.items()))
    own = infos(pkgutil.resolve_name(target))
    assert match(own, own, dialects=family.renames).dialect is None, name


def test_densenet_reads_both_of_its_dialects():
    model = infos(torchvision.models.densenet121)
    inner = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    counted = {key for key in model if key.endswith("num_batches_tracked")}
    legacy = {inner.sub(r"\1.\2.", key): model[key] for key in model if key not in counted}
    matching = read_with(densenet.FAMILY, model, legacy)
    assert matching.dialect == "torchvision legacy"
    assert matching.pairs.keys() == model.keys() - counted
    assert {*matching.counters} == counted
    cadene = {key.replace("classifier.", "last_linear."): info for key, info in legacy.items()}
    matching = read_with(densenet.FAMILY, model, cadene)
    assert matching.dialect == "pretrainedmodels"
    assert matching.pairs["classifier.bias"] == "last_linear.bias"
    assert matching.absent == matching.unexpected == ()


def test_inception_finds_its_head_under_the_name_that_pretrainedmodels_gives_it():
    model = infos(torchvision.models.inception_v3, init_weights=False, num_classes=7)
    source = {
        re.sub(r"^fc\.", "last_linear.", key): info
        for key, info in infos(torchvision.models.inception_v3, init_weights=False).items()
    }
    matching = read_with(inception.FAMILY, model, source)
    assert matching.dialect == "pretrainedmodels"
    heads = {f"{layer}.{kind}" for layer in ("fc", "AuxLogits.fc") for kind in ("weight", "bias")}
    assert {item.key for item in matching.mismatched} == heads
    assert matching.missing == matching.unexpected == ()


def test_a_dialect_needs_more_than_a_name_to_be_chosen():
    """The rules for another library's ``classifier.1`` fit a BatchNorm of a segmentation head."""
    model = infos(torchvision.models.resnet50)
    source = infos(torchvision.models.segmentation.fcn_resnet50, weights_backbone=None)
    matching = match(model, source, dialects=resnet.FAMILY.renames)
    assert matching.dialect is None
    assert matching.source_prefix == "backbone."
    assert len(matching.pairs) == len(model) - 2


def test_files_of_inception_with_and_without_auxiliary_heads_and_counters():
    """As ``inception_v3_google`` and ``googlenet`` are: heads always in, counters from 2017 out."""
    for build, aside in (
        (torchvision.models.inception_v3, {"AuxLogits"}),
        (torchvision.models.googlenet, {"aux1", "aux2"}),
    ):
        full = infos(build, init_weights=False)
        old = {key: info for key, info in full.items() if "num_batches_tracked" not in key}
        model = infos(build, init_weights=False, aux_logits=False)
        matching = match(model, old)
        assert {key.split(".")[0] for key in matching.unexpected} == aside
        assert matching.absent == ()
        assert matching.warning() is None


@pytest.mark.parametrize(
    "variant", ["b0", "b1", "b2", *(pytest.param(f"b{n}", marks=pytest.mark.slow) for n in (5, 7))]
)
def test_efficientnet_pytorch_reads_torchvision_and_timm(variant: str):
    timm = pytest.importorskip("timm")
    model = infos(EfficientNet.from_name, f"efficientnet-{variant}")
    ours = infos(getattr(torchvision.models, f"efficientnet_{variant}"))
    theirs = infos(timm.create_model, f"tf_efficientnet_{variant}")
    for source in (ours, theirs):
        matching = read_with(efficientnet_pytorch.FAMILY, model, source)
        assert variant in (matching.dialect or "")
        assert matching.pairs.keys() == model.keys()
        assert {*matching.pairs.values()} == {*source}
    back = read_with(efficientnet.FAMILY, ours, model)
    assert variant in (back.dialect or "")
    # The classes of both are called alike in both directions, and so is every other tensor.
    there = match(model, ours, dialects=efficientnet_pytorch.FAMILY.renames).pairs
    assert {name: key for key, name in back.pairs.items()} == dict(there)


def test_a_family_of_two_generations_needs_no_dialect_for_its_own():
    for name in ("efficientnet_b0", "efficientnet_v2_s"):
        own = infos(getattr(torchvision.models, name))
        assert match(own, own, dialects=efficientnet.FAMILY.renames).dialect is None


def test_efficientnets_of_timm_give_the_same_output_in_efficientnet_pytorch():
    timm = pytest.importorskip("timm")
    donor = timm.create_model("tf_efficientnet_b0", num_classes=3).eval()
    model = EfficientNet.from_name("efficientnet-b0", num_classes=3).eval()
    for parameter in donor.get_classifier().parameters():
        torch.nn.init.normal_(parameter)
    state = donor.state_dict()
    dialects = efficientnet_pytorch.FAMILY.renames
    matching = match(describe(model.state_dict()), describe(state), dialects=dialects)
    model.load_state_dict({key: state[name] for key, name in matching.pairs.items()})
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, wanted = model(image), donor(image)
    assert wanted.std() > 0.1
    assert torch.allclose(found, wanted, atol=1e-4)


def test_heads_of_retinanet_from_before_its_layers_had_a_norm():
    """torchvision's version 1 kept ``conv.0`` where version 2 has ``conv.0.0``."""
    build = torchvision.models.detection.retinanet_resnet50_fpn
    model = infos(build, weights=None, weights_backbone=None)
    inner = re.compile(r"(_head\.conv\.\d)\.0\.")
    source = {inner.sub(r"\1.", key): info for key, info in model.items()}
    assert len(source) == len(model)
    rules = {"torchvision version 1": ((r"(_head\.conv\.\d)\.(?=weight|bias)", r"\1.0."),)}
    matching = match(model, source, dialects=rules)
    assert matching.dialect == "torchvision version 1"
    assert dict(matching.pairs) == {key: inner.sub(r"\1.", key) for key in model}
