"""Heads on models that people use without one: of timm, of transformers, trunks of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surgery_plugins import timm as timm_plugin
from surgery_plugins import transformers as transformers_plugin
from surgery_plugins import vision_transformer as vision_transformer_plugin
from torch import nn

import surgery
from surgery.errors import ArgumentError, NoHeadError
from surgery.families.registry import Registry
from surgery.operations.attached import Headed
from surgery.operations.plan import Outcome

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")
REGISTRY = Registry.of(timm_plugin.FAMILY, transformers_plugin.FAMILY)

# By the form of what is in front of the head: see where each puts it.
PLACES = {
    "resnet18": "fc",
    "vgg11": "head.fc",
    "densenet121": "classifier",
    "mobilenetv3_small_050": "classifier",
    "vit_tiny_patch16_224": "head",
    "vit_base_patch16_clip_224": "head",
    "deit_tiny_distilled_patch16_224": "head, head_dist",
    "levit_128s": "head, head_dist",
    "repvit_m0_9": "head.head, head.head_dist",
    "swin_tiny_patch4_window7_224": "head.fc",
    "convnext_atto": "head.fc",
    "dla34": "fc",
    "resnetv2_50": "head.fc",
    "efficientvit_b0": "head.classifier.4",
    "efficientvit_m0": "head",
    "mambaout_femto": "head.fc",
    "volo_d1_224": "head",
    "hrnet_w18_small": "classifier",
    "inception_v3": "fc",
}
QUICK = {"resnet18", "deit_tiny_distilled_patch16_224", "squeezenet1_1"}


def quick_first(names: Any) -> list[Any]:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(names)]


def headless(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **options)


def attached(model: nn.Module, number: int = 7, **options: Any) -> Outcome:
    """Put a head on a model, and see that it is one like any other."""
    given = {"registry": REGISTRY, **options}
    example = given.get("example")
    found = surgery.find_heads(model, example, registry=given["registry"])
    assert not any(head.corroborated for head in found)
    outcome = surgery.replace_head(model, number, attach=True, **given)
    heads = surgery.find_heads(outcome.model, example, registry=given["registry"])
    assert {(head.num_classes, head.corroborated) for head in heads} == {(number, True)}
    places = tuple(outcome.plan.probes)
    assert all(f"{head.address}.".startswith(tuple(f"{p}." for p in places)) for head in heads)
    changes = [change for change in outcome.plan.outputs if change.class_axes]
    assert {change.mode for change in changes} == {"eval", "train"}
    assert all(change.after.shape[1:] == (number,) for change in changes)
    return outcome


@pytest.mark.parametrize("name", quick_first(PLACES))
def test_timm_leaves_a_place_for_it(name: str):
    model = headless(name)
    with pytest.raises(NoHeadError, match="attach=True"):
        surgery.replace_head(model, 7, registry=REGISTRY)
    outcome = attached(model)
    assert outcome.model is model
    assert ", ".join(outcome.plan.probes) == PLACES[name]
    assert model.num_classes == 7
    second = surgery.replace_head(model, 3, registry=REGISTRY)
    removed = surgery.remove_head(model, registry=REGISTRY)
    again = attached(model, 5)
    assert again.plan.probes.keys() == outcome.plan.probes.keys()
    for each in (again, removed, second, outcome):
        each.undo()
    assert model.num_classes == 0
    assert all(isinstance(model.get_submodule(a), nn.Identity) for a in outcome.plan.probes)


def test_what_timm_attaches_itself_is_the_same():
    model = timm.create_model("test_resnet", num_classes=0)
    outcome = attached(model)
    theirs = timm.create_model("test_resnet", num_classes=0)
    theirs.reset_classifier(7)
    assert str(model) == str(theirs)
    theirs.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(image), theirs.eval()(image))
    assert isinstance(outcome.undo().get_classifier(), nn.Identity)


@pytest.mark.parametrize(
    ("name", "pool", "kind"),
    [("test_resnet", None, "mean"), ("test_vit", "first", "first"), ("test_vit", "mean", "mean")],
    ids=["image", "class token", "all words"],
)
def test_without_its_pooling_the_features_are_pooled_in_the_place(name: str, pool: Any, kind: str):
    model = timm.create_model(name, num_classes=0, global_pool="")
    if pool is None:
        outcome = attached(model)
    else:
        with pytest.raises(ArgumentError, match="pool"):
            surgery.replace_head(model, 7, attach=True, registry=REGISTRY)
        outcome = attached(model, pool=pool)
    assert outcome.model is model
    (place,) = outcome.plan.probes
    assert model.get_submodule(place)[0].how == kind


def test_where_timm_leaves_no_place_the_head_is_put_behind():
    model = headless("crossvit_9_240")
    outcome = attached(model)
    assert isinstance(outcome.model, Headed)
    assert outcome.model.head.in_features == 384
    assert outcome.undo() is model


def test_feature_pyramids_end_in_what_all_lead_to():
    with torch.device("meta"):
        model = timm.create_model("resnet18", features_only=True)
    outcome = attached(model)
    assert outcome.model.way == (("item", 4),)
    assert outcome.model.head.in_features == 512
    chosen = surgery.replace_head(outcome.undo(), 7, attach="output[2]", registry=REGISTRY)
    assert chosen.model.head.in_features == 128


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SIZES, "vocab_size": 99}
IMAGE = {**SIZES, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

# The class, its configuration, what to pool and how: by None what the model pooled itself.
BASES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "BertModel": (TEXT, None, "pooler_output"),
    "DistilBertModel": (
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99},
        *("first", "last_hidden_state"),
    ),
    "LlamaModel": ({**TEXT, "num_key_value_heads": 2}, "last", "last_hidden_state"),
    "GPT2Model": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "last", "last_hidden_state"),
    "T5EncoderModel": (
        {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64, "vocab_size": 99},
        *("mean", "last_hidden_state"),
    ),
    "ViTModel": (IMAGE, None, "pooler_output"),
    "Dinov2Model": (IMAGE, None, "pooler_output"),
    "SwinModel": (
        {
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "image_size": 32,
            "window_size": 4,
        },
        *(None, "pooler_output"),
    ),
    "ConvNextModel": (STAGES, None, "pooler_output"),
    "ResNetModel": ({"embedding_size": 8, **STAGES}, None, "pooler_output"),
    "SegformerModel": (
        {"num_attention_heads": [1, 2, 2, 2], "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4},
        *(None, "last_hidden_state"),
    ),
    "VideoMAEModel": ({**IMAGE, "num_frames": 2}, "mean", "last_hidden_state"),
    "Wav2Vec2Model": (SIZES, "mean", "last_hidden_state"),
}


def base(name: str) -> nn.Module:
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model: nn.Module = cls(cls.config_class(**BASES[name][0]))
    return model.eval()


@pytest.mark.parametrize("name", sorted(BASES))
def test_a_base_model_of_transformers_gets_a_head(name: str):
    model = base(name)
    _, pool, output = BASES[name]
    outcome = attached(model, pool=pool)
    made = outcome.model
    assert isinstance(made, Headed)
    assert made.backbone is model
    assert made.way == (("name", output),)
    assert outcome.undo() is model


@pytest.mark.parametrize("name", ["DistilBertModel", "LlamaModel", "T5EncoderModel"])
def test_who_does_not_pool_is_asked_how(name: str):
    with pytest.raises(ArgumentError, match="'first' for a class token"):
        surgery.replace_head(base(name), 7, attach=True, registry=REGISTRY)


def test_what_transformers_itself_builds_for_classes_answers_the_same():
    config = transformers.BertConfig(num_labels=7, **TEXT)
    theirs = transformers.BertForSequenceClassification(config).eval()
    made = attached(base("BertModel")).model.eval()
    made.backbone.load_state_dict(theirs.bert.state_dict())
    made.head.load_state_dict(theirs.classifier.state_dict())
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    expected = theirs(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(made(input_ids=ids, attention_mask=mask), expected)


def test_the_last_word_is_the_one_that_transformers_takes():
    config = transformers.LlamaConfig(
        num_labels=7, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **TEXT
    )
    theirs = transformers.LlamaForSequenceClassification(config).eval()
    made = surgery.replace_head(
        theirs.model, 7, attach=True, pool="last", registry=REGISTRY
    ).model.eval()
    with torch.no_grad():
        made.head.weight.copy_(theirs.score.weight)
        made.head.bias.zero_()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [9, 0, 0, 0]])
    mask = (ids != 0).long()
    expected = theirs(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(made(input_ids=ids, attention_mask=mask), expected, atol=1e-6)


def test_a_head_taken_from_transformers_is_put_back_with_its_facts():
    config = transformers.BertConfig(num_labels=3, **TEXT)
    model = transformers.BertForSequenceClassification(config)
    removed = surgery.remove_head(model, registry=REGISTRY)
    outcome = surgery.replace_head(model, classes=["a", "b"], attach=True, registry=REGISTRY)
    assert outcome.model is model
    assert model.classifier.out_features == model.config.num_labels == 2
    assert model.config.id2label == {0: "a", 1: "b"}
    assert model.config.label2id == {"a": 0, "b": 1}
    outcome.undo()
    removed.undo()
    assert model.config.num_labels == 3


TRUNKS: dict[str, tuple[int, int]] = {
    "resnet18": (2, 512),
    "vgg11": (2, 512),
    "densenet121": (1, 1024),
    "mobilenet_v2": (1, 1280),
    "efficientnet_b0": (2, 1280),
    "squeezenet1_1": (1, 512),
    "swin_t": (4, 768),
    "convnext_tiny": (2, 768),
    "inception_v3": (3, 2048),
    "r3d_18": (2, 512),
}


@pytest.mark.parametrize("name", quick_first(TRUNKS))
def test_a_trunk_of_torchvision_gets_a_head(name: str):
    off, size = TRUNKS[name]
    build: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    with torch.device("meta"):
        options = {"init_weights": False} if name == "inception_v3" else {}
        whole = build(weights=None, **options)
    parts = [part for key, part in whole.named_children() if key != "AuxLogits"]
    model = nn.Sequential(*parts[:-off])
    video = name == "r3d_18"
    example = torch.zeros(2, 3, *((4, 64, 64) if video else (128, 128)), device="meta")
    outcome = attached(model, example=example, registry=Registry.of())
    assert outcome.model.head.in_features == size
    assert outcome.model.pool.axis == (3 if name == "swin_t" else 1)
    assert outcome.undo() is model


def test_a_head_that_was_removed_is_put_back_where_the_family_says():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    registry = Registry.of(vision_transformer_plugin.FAMILY)
    surgery.remove_head(model, registry=registry)
    outcome = surgery.replace_head(model, 7, attach=True, registry=registry)
    assert outcome.model is model
    assert list(outcome.plan.probes) == ["heads.head"]
    assert model.num_classes == 7
