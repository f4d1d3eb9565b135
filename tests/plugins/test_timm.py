from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from surgery_plugins import timm as plugin
from surgery_plugins import timm_catalog as catalog
from torch import nn

import surgery
from surgery.errors import ArgumentError, NoHeadError
from surgery.families.applied import example_for, heads_for, stages_for, stem_for
from surgery.families.registry import Registry
from surgery.heads import find_heads
from surgery.operations.target import resolve_target
from surgery.testing import check_family

timm = pytest.importorskip("timm")
layer_decay = pytest.importorskip("timm.optim").param_groups_layer_decay
FAMILY = plugin.FAMILY
REGISTRY = Registry.of(FAMILY)

# One of each sort: by the form of the head, of the stem, of the groups, of the size of images.
SORTS = (
    *("resnet18", "vit_tiny_patch16_224", "levit_128s", "deit_tiny_distilled_patch16_224"),
    *("convnext_atto", "mobilenetv3_small_050", "poolformer_s12", "test_nfnet", "ghostnet_050"),
    *("crossvit_tiny_240", "tresnet_m", "test_efficientnet", "mixer_s32_224", "cspresnet50"),
)


def build(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return resolve_target(f"timm:{name}", REGISTRY).factory(**options)


def test_the_catalog_is_what_timm_lists():
    assert sorted(FAMILY.catalog) == sorted(timm.list_models())


def test_listing_and_completing_import_neither_timm_nor_torch():
    code = "import sys; from surgery_plugins.timm import FAMILY; from surgery.families.registry "
    code += "import Registry; names = Registry.of(FAMILY).catalog_names; "
    code += "sys.exit(not names or 'timm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_library_there_are_no_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog, "folder", lambda *parts: None)
    assert catalog.registered.__wrapped__() == {}


@pytest.mark.parametrize("name", SORTS)
def test_the_family_keeps_its_word_on_each_sort(name: str):
    assert check_family(FAMILY, models={name: partial(build, name)}) == (name,)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.registered())
def test_the_family_keeps_its_word_on(name: str):
    assert check_family(FAMILY, models={name: partial(build, name)}) == (name,)


def test_parts_are_not_claimed_and_subclasses_are():
    model = build("resnet18")
    assert REGISTRY.claim(model) is FAMILY
    assert REGISTRY.claim(model.layer1) is REGISTRY.claim(model.layer1[0]) is None

    class Mine(type(model)):
        pass

    assert not REGISTRY.find_claim(Mine.__new__(Mine)).exact


def test_a_head_that_learns_from_a_teacher_is_told_apart():
    claims = heads_for(FAMILY, build("deit_tiny_distilled_patch16_224"))
    assert [(claim.address, claim.role) for claim in claims] == [
        ("head", "main"),
        ("head_dist", "distillation"),
    ]


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("resnet18", {}, (2, 3, 224, 224)),
        ("resnet18", {"in_chans": 5}, (2, 5, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": 64, "in_chans": 1}, (2, 1, 64, 64)),
        ("tresnet_m", {}, (2, 3, 224, 224)),
        ("crossvit_tiny_240", {}, (2, 3, 240, 240)),
    ],
)
def test_the_example_follows_how_the_model_was_built(name: str, options: dict, shape: tuple):
    assert example_for(FAMILY, build(name, **options)).args[0].shape == shape


def test_a_model_made_by_its_class_alone_is_left_to_the_graph():
    with torch.device("meta"):
        model = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1))
    assert heads_for(FAMILY, model) == ()
    assert example_for(FAMILY, model) is None
    (head,) = find_heads(model, registry=REGISTRY)
    assert (head.address, head.corroborated) == ("fc", True)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "levit_128s"])
def test_without_the_plugin_the_graph_finds_the_same(name: str):
    model = build(name)
    known, alone = (find_heads(model, registry=each) for each in (REGISTRY, Registry.of()))
    assert [h.address for h in known] == [h.address for h in alone]
    assert all(head.corroborated for head in alone)
    assert stages_for(FAMILY, model)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_gap_224", "aimv2_large_patch14_224"])
def test_a_model_without_a_classifier_is_recognised(name: str):
    model = build(name)
    assert find_heads(model, registry=REGISTRY) == ()
    with pytest.raises(NoHeadError):
        surgery.replace_head(model, 7, registry=REGISTRY)


# They end in a layer like any classifier's, in front of what reads the image's features.
ENCODERS = ("qwen3_vit_88m_enc", "deepseek_vit_412m_enc", "mobilenetv5_300m_enc")


@pytest.mark.parametrize("name", [*ENCODERS, "gemma4_vit_167m_enc"])
def test_an_encoder_that_says_it_has_no_classes_has_none(name: str):
    model = build(name)
    assert REGISTRY.claim(model) is FAMILY
    heads = find_heads(model, registry=REGISTRY)
    assert not heads
    assert "family 'timm' says that nothing in it makes classes" in heads.ending


@pytest.mark.parametrize("name", ENCODERS)
def test_without_the_plugin_the_last_layer_of_an_encoder_is_an_uncertain_candidate(name: str):
    (head,) = find_heads(build(name), example_for(FAMILY, build(name)), registry=Registry.of())
    assert not head.corroborated


def test_a_layer_of_ones_own_is_found_though_the_model_says_that_it_has_no_classes():
    model = build("resnet18", num_classes=0)
    assert not find_heads(model, registry=REGISTRY)
    model.fc = nn.Linear(512, 7, device="meta")
    (head,) = find_heads(model, registry=REGISTRY)
    assert (model.num_classes, head.address, head.corroborated) == (0, "fc", True)


@pytest.mark.parametrize(
    ("name", "stem", "stages"),
    [
        ("resnet18", ("conv1", "bn1"), tuple((f"layer{n}",) for n in range(1, 5))),
        (
            "vit_tiny_patch16_224",
            ("patch_embed", "cls_token", "pos_embed"),
            (*((f"blocks.{n}",) for n in range(11)), ("blocks.11", "norm")),
        ),
    ],
)
def test_stem_and_stages_are_the_groups_that_timm_makes(name: str, stem: tuple, stages: tuple):
    model = build(name)
    assert (stem_for(FAMILY, model), stages_for(FAMILY, model)) == (stem, stages)


# Where blocks are finer than stages, where they are not, and where a norm goes with the head.
BLOCKS = (
    *("swin_tiny_patch4_window7_224", "convnext_tiny", "resnet50", "efficientnet_b0", "levit_128s"),
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224"),
    *("maxvit_tiny_tf_224", "hrnet_w18_small", "regnety_002", "mobilenetv3_small_050"),
)


@pytest.mark.parametrize("classes", [7, 0])
@pytest.mark.parametrize("name", BLOCKS)
def test_learning_rates_by_blocks_are_those_of_timm(name: str, classes: int):
    model = build(name, num_classes=classes)
    without = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = {
        id(each): (group["lr_scale"], group["weight_decay"])
        for group in layer_decay(
            model, weight_decay=0.05, no_weight_decay_list=without, layer_decay=0.65
        )
        for each in group["params"]
    }
    ours = surgery.parameter_groups(
        model, lr=1.0, layer_decay=0.65, weight_decay=0.05, layers="blocks", registry=REGISTRY
    )
    placed = [(id(p), (g["lr"], g["weight_decay"])) for g in ours for p in g["params"]]
    assert len(placed) == len(theirs)
    assert dict(placed) == theirs


def test_blocks_train_one_after_the_other():
    model = build("convnext_atto")
    plan = surgery.unfreezing(model, layers="blocks", registry=REGISTRY)
    names = [phase.name for phase in plan.phases]
    assert names[:3] == ["stem", "stages.0.blocks.0", "stages.0.blocks.1"]
    assert names[-2:] == ["stages.3.blocks.1", "head"]
    for epoch, trains in ((0, {"head"}), (1, {"head", "stages.3.blocks.1"})):
        plan.apply(model, epoch, registry=REGISTRY)
        assert all(
            p.requires_grad is any(name.startswith(part) for part in trains)
            for name, p in model.named_parameters()
        )


def test_where_timm_makes_one_group_there_are_no_blocks():
    with pytest.raises(ArgumentError, match="no plugin knows the blocks"):
        surgery.parameter_groups(
            build("poolformer_s12"), lr=1.0, layer_decay=0.5, layers="blocks", registry=REGISTRY
        )


def test_a_name_of_the_catalog_is_built_with_options():
    model = surgery.build("timm:resnet50", num_classes=7, registry=REGISTRY, in_chans=1).model
    assert (type(model), model.num_classes) == (timm.models.resnet.ResNet, 7)
    assert (model.conv1.in_channels, model.fc.out_features) == (1, 7)


@pytest.mark.parametrize("registry", [REGISTRY, Registry.of()], ids=["plugin", "graph"])
def test_what_says_the_number_of_classes_follows_with_and_without_the_plugin(registry: Registry):
    """What timm keeps for the next model of this name does not."""
    model = build("resnet18")
    outcome = surgery.replace_head(model, 7, registry=registry)
    assert (model.num_classes, model.fc.out_features) == (7, 7)
    assert model.pretrained_cfg["num_classes"] == 7
    assert timm.get_pretrained_cfg("resnet18").num_classes == 1000
    assert build("resnet18").pretrained_cfg["num_classes"] == 1000
    outcome.undo()
    assert (model.num_classes, model.pretrained_cfg["num_classes"]) == (1000, 1000)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("gemma4_vit_167m", (2, 3, 96, 96)), ("botnet26t_256", (2, 3, 256, 256))],
)
def test_the_example_is_as_small_as_the_model_says_it_takes(name: str, shape: tuple):
    assert example_for(FAMILY, build(name)).args[0].shape == shape


def test_seven_classes_there_and_back():
    model = build("deit_tiny_distilled_patch16_224")
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    features = model.num_features
    outcome = surgery.replace_head(model, 7, registry=REGISTRY)
    assert (model.num_classes, model.num_features) == (7, features)
    assert {model.head.out_features, model.head_dist.out_features} == {7}
    outcome.undo()
    assert {n: id(t) for n, t in model.state_dict(keep_vars=True).items()} == before
    assert model.num_classes == 1000
