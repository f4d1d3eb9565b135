"""What only one family or a few say: stages by scale, options, models that users have changed."""

from __future__ import annotations

import math
from pkgutil import resolve_name

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import round_repeats
from surgery_plugins import (
    efficientnet,
    efficientnet_pytorch,
    googlenet,
    inception,
    mobilenet,
    optical_flow,
    quantizable,
    resnet,
    segmentation,
    shufflenet,
    squeezenet,
    vgg,
    video,
    vision_transformer,
)
from torch import nn
from torchvision import models
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from surgery.families import Family
from surgery.families.applied import example_for, stages_for, stem_for
from surgery.families.registry import Registry
from surgery.heads import find_heads
from surgery.testing import check_family

BASES = (
    *(resnet.FAMILY, shufflenet.FAMILY, googlenet.FAMILY, inception.FAMILY),
    *(mobilenet.V2, mobilenet.V3),
)


def on_meta(build, **settings: object) -> nn.Module:
    with torch.device("meta"):
        return build(**settings)


def scales(family: Family, model: nn.Module) -> list[set[torch.Size]]:
    """The sizes in space and time that the features of each stage have."""
    stages = [
        [address for address in stage if not address.startswith("classifier")]
        for stage in stages_for(family, model)
    ]
    found: list[set[torch.Size]] = [set() for stage in stages if stage]
    for sizes, stage in zip(found, filter(None, stages), strict=True):
        for address in stage:
            model.get_submodule(address).register_forward_hook(
                lambda module, args, out, sizes=sizes: sizes.add(out.shape[2:])
            )
    example = example_for(family, model)
    with torch.no_grad():
        model.eval()(*example.args)
    return found


@pytest.mark.parametrize(
    ("family", "build", "count"),
    [
        (vgg.FAMILY, models.vgg11, 4),
        (vgg.FAMILY, models.vgg16_bn, 5),
        (squeezenet.FAMILY, models.squeezenet1_0, 3),
        (squeezenet.FAMILY, models.squeezenet1_1, 3),
        (mobilenet.V2, models.mobilenet_v2, 5),
        (mobilenet.V3, models.mobilenet_v3_large, 5),
        (mobilenet.V3, models.mobilenet_v3_small, 4),
        (video.S3D, models.video.s3d, 4),
    ],
)
def test_a_stage_is_what_happens_at_one_scale(family: Family, build, count: int):
    found = scales(family, on_meta(build))
    assert [len(sizes) for sizes in found] == [1] * count
    areas = [math.prod(sizes.pop()) for sizes in found]
    assert areas == sorted(set(areas), reverse=True)


@pytest.mark.parametrize("variant", ["b0", "b3", "l2"])
def test_stages_of_efficientnet_pytorch_are_those_of_the_paper(variant: str):
    settings = EfficientNet.from_name("efficientnet-b0")._blocks_args
    with torch.device("meta"):
        model = EfficientNet.from_name(f"efficientnet-{variant}")
    *stages, last = stages_for(efficientnet_pytorch.FAMILY, model)
    assert [len(stage) for stage in stages] == [
        round_repeats(setting.num_repeat, model._global_params) for setting in settings
    ]
    assert last == ("_conv_head", "_bn1")


@pytest.mark.parametrize(
    ("family", "build"),
    [
        (googlenet.FAMILY, googlenet.googlenet),
        (inception.FAMILY, inception.inception_v3),
        (quantizable.FAMILIES[4], quantizable.googlenet),
        (quantizable.FAMILIES[5], quantizable.inception_v3),
    ],
)
def test_the_auxiliary_heads_may_be_left_out(family: Family, build):
    names = check_family(family, models={"with": build, "without": lambda: build(aux_logits=False)})
    assert names == ("with", "without")


@pytest.mark.parametrize(
    ("family", "build", "attribute"),
    [
        (mobilenet.V2, models.mobilenet_v2, "classifier"),
        (mobilenet.MNASNET, models.mnasnet0_5, "classifier"),
        (efficientnet.FAMILY, models.efficientnet_b0, "classifier"),
        (vision_transformer.FAMILY, models.vit_b_32, "heads"),
    ],
)
def test_a_head_that_users_put_in_place_of_a_block_is_known(family: Family, build, attribute: str):
    model = on_meta(build)
    (head,) = find_heads(model, registry=Registry.of(family))
    setattr(model, attribute, nn.Linear(head.in_features, 7, device="meta"))
    (found,) = find_heads(model, registry=Registry.of(family))
    assert (found.address, found.num_classes, found.corroborated) == (attribute, 7, True)
    setattr(model, attribute, nn.Identity())
    assert find_heads(model, registry=Registry.of(family)) == ()


QUANTIZABLE = [(family, name) for family in quantizable.FAMILIES for name in family.catalog]


@pytest.mark.parametrize(("family", "name"), QUANTIZABLE, ids=[name for _, name in QUANTIZABLE])
def test_a_quantizable_model_is_also_what_its_base_is(family: Family, name: str):
    model = on_meta(resolve_name(family.catalog[name]))
    (base,) = [other for other in BASES if f"quantizable_{other.name}" == family.name]
    registry = Registry.of(*quantizable.FAMILIES, *BASES)
    assert registry.claim(model) is family
    assert registry.find_claim(model).exact
    assert Registry.of(*BASES).claim(model) is base
    assert stages_for(family, model) == stages_for(base, model)


def test_a_vision_transformer_with_a_stem_of_several_layers_and_another_size():
    def build() -> nn.Module:
        stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2)]
        return VisionTransformer(32, 4, 2, 2, 8, 16, num_classes=5, conv_stem_configs=stem)

    check_family(vision_transformer.FAMILY, models={"stem": build})


def test_a_vision_transformer_with_a_hidden_layer_in_its_head():
    def build() -> nn.Module:
        return VisionTransformer(16, 8, 3, 2, 8, 16, num_classes=5, representation_size=6)

    check_family(vision_transformer.FAMILY, models={"hidden": build})
    assert len(stages_for(vision_transformer.FAMILY, build())) == 3


def test_a_video_transformer_of_another_size_and_depth():
    blocks = [
        MSBlockConfig(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(1, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]

    def build() -> nn.Module:
        return MViT((32, 48), 8, blocks, False, False, True, True, num_classes=5)

    (clip,) = example_for(video.MVIT, build()).args
    assert clip.shape == (2, 3, 8, 32, 48)
    check_family(video.MVIT, models={"small": build})


@pytest.mark.parametrize(
    "build",
    [
        segmentation.builders.fcn_resnet50,
        segmentation.builders.deeplabv3_mobilenet_v3_large,
        segmentation.builders.lraspp_mobilenet_v3_large,
    ],
)
def test_the_stages_of_a_segmentation_model_end_with_the_body_of_its_classifier(build):
    model = on_meta(build)
    family = Registry.of(*segmentation.surgery_families()).claim(model)
    *trunk, body = stages_for(family, model)
    assert all(address.startswith("backbone.") for stage in trunk for address in stage)
    assert all(address.startswith("classifier.") for address in body)
    whole_stages = hasattr(model.backbone, "layer1")
    assert len(trunk) == (4 if whole_stages else 5)
    first, _ = next(model.backbone.named_children())
    assert stem_for(family, model)[0] == f"backbone.{first}"


def test_nothing_in_optical_flow_makes_classes():
    assert optical_flow.FAMILY.heads == ()
    model = on_meta(models.optical_flow.raft_large)
    example = example_for(optical_flow.FAMILY, model)
    assert [image.shape for image in example.args] == [(2, 3, 128, 128)] * 2
    assert find_heads(model, registry=Registry.of(optical_flow.FAMILY)) == ()
