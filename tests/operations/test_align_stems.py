"""Real models with another stem, vocabulary, patch, image size, width; tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from surgery.operations.align import correspondences, twins_of
from tests.graph.test_ties import calls

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
NOTHING = Registry.of()
SLOW = pytest.mark.slow
IMAGE = torch.zeros(1, 3, 64, 64)
WORDS = torch.ones(1, 6, dtype=torch.long)


def grey(classes: int = 1000) -> nn.Module:
    model = torchvision.models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return model


def bert(words: int, places: int) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=words,
        max_position_embeddings=places,
    )
    return transformers.BertModel(config)


def patched(library: str, patch: int = 8, size: int = 16, mlp: int = 2) -> nn.Module:
    if library == "timm":
        return timm.create_model(
            "vit_base_patch16_224",
            img_size=size,
            patch_size=patch,
            embed_dim=24,
            depth=2,
            num_heads=3,
            mlp_ratio=mlp,
            num_classes=10,
        )
    return torchvision.models.VisionTransformer(size, patch, 2, 3, 24, 24 * mlp, num_classes=10)


RENAMED = {
    "conv_proj.": "patch_embed.proj.",
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "encoder.ln.": "norm.",
    "heads.head.": "head.",
}


def renamed(name: str) -> str:
    """A name of torchvision's transformer in timm's."""
    name = re.sub(r"encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1", name)
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def kept(name: str) -> str:
    """The same name."""
    return name


def pooled(name: str) -> str:
    """A name of a model that pools in front of its shortcuts in one that steps there."""
    return name.replace("downsample.1.", "downsample.0.").replace("downsample.2.", "downsample.1.")


Make = Callable[[], nn.Module]
# What they are, what one takes and the other, what the first one's names are in the other, and
# which tensors of the first have no counterpart there.
PAIRS: dict[str, tuple[Make, Make, Any, Any, Callable[[str], str], str]] = {
    "channels": (
        grey,
        lambda: timm.create_model("resnet18"),
        torch.zeros(1, 1, 64, 64),
        IMAGE,
        kept,
        r"conv1\.",
    ),
    "channels and head": (
        lambda: grey(5),
        lambda: timm.create_model("resnet18"),
        torch.zeros(1, 1, 64, 64),
        IMAGE,
        kept,
        r"conv1\.|fc\.",
    ),
    "deep stem": (
        lambda: timm.create_model("resnet26d"),
        lambda: timm.create_model("resnet26"),
        IMAGE,
        IMAGE,
        pooled,
        r"conv1\.|layer[234]\.0\.downsample\.1\.",
    ),
    "vocabulary": (
        lambda: bert(50, 16),
        lambda: bert(70, 20),
        WORDS,
        WORDS,
        kept,
        r"embeddings\.(word|position)_embeddings",
    ),
    "patch": (
        lambda: patched("torchvision", 4, 8),
        lambda: patched("timm"),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 3, 16, 16),
        renamed,
        r"conv_proj\.",
    ),
    "image": (
        lambda: patched("torchvision", size=32),
        lambda: patched("timm"),
        torch.zeros(1, 3, 32, 32),
        torch.zeros(1, 3, 16, 16),
        renamed,
        r"encoder\.pos_embedding",
    ),
    "width of the mlp": (
        lambda: patched("torchvision", mlp=4),
        lambda: patched("timm"),
        torch.zeros(1, 3, 16, 16),
        torch.zeros(1, 3, 16, 16),
        renamed,
        r".*mlp\.",
    ),
    "wide": (
        lambda: torchvision.models.resnet50(),
        lambda: timm.create_model("wide_resnet50_2"),
        IMAGE,
        IMAGE,
        kept,
        r"layer\d\.\d\.(conv[123]|bn[12])\.",
    ),
}


def unproven(notes: Iterable[str]) -> str:
    return next((n for n in notes if n.startswith("placed by the graphs alone")), "")


@pytest.mark.parametrize("back", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_common_goes_over_and_nothing_else(name: str, back: bool):
    make, other, x, y, rename, gone = PAIRS[name]
    one, two = make().eval(), other().eval()
    names = {rename(k): k for k in one.state_dict() if not re.match(gone, k)}
    before = {k: v.clone() for k, v in (one if back else two).state_dict().items()}
    outcome = surgery.transplant(
        two if back else one,
        one if back else two,
        match="graph",
        example=y if back else x,
        min_coverage=0.25,
        registry=NOTHING,
    )
    proven = next(note for note in outcome.plan.notes if note.startswith("proven"))
    assert "largest difference" in proven
    for ours, theirs in names.items():
        assert torch.equal(two.state_dict()[ours], one.state_dict()[theirs]), ours
    rest = set(before) - set(names.values() if back else names)
    recipient = (one if back else two).state_dict()
    assert all(torch.equal(recipient[each], before[each]) for each in rest)
    told = " ".join(n for n in outcome.plan.notes if n.startswith("not aligned, of the recipient"))
    assert all(each in told for each in rest if not each.endswith("num_batches_tracked"))
    # The first convolution of the two image sizes sees different images: nothing compares it. The
    # biases of keys say nothing.
    silent = {"image": ("proj", "cls", "class_token"), "vocabulary": ("key.bias",)}.get(name, ())
    left = unproven(outcome.plan.notes)
    assert all(
        any(word in part for word in silent) for part in left.split(": ")[-1].split(", ") if left
    )


def test_pooling_shortcuts_are_a_difference_where_nothing_else_is():
    donor = timm.create_model("resnet26", avg_down=True).eval()
    recipient = timm.create_model("resnet26").eval()
    with pytest.raises(PlanError, match="computes something else") as caught:
        surgery.transplant(donor, recipient, match="graph", example=IMAGE, registry=NOTHING)
    assert "avg_pool2d" in str(caught.value)


def test_the_way_to_another_width_costs_no_more_than_twice_the_recording():
    with torch.device("meta"):
        one, other = patched("timm"), patched("torchvision", mlp=4)
    x = torch.zeros(1, 3, 16, 16, device="meta")
    twins_of(one, other, x, registry=NOTHING)
    both, recording = calls(lambda: twins_of(one, other, x, registry=NOTHING))
    _, aligning = calls(lambda: next(correspondences(both)))
    assert aligning < 2 * recording
