"""Examples are inferred for the models that people use, with no plugin that knows them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from surgery.graph.infer import infer_example
from tests.graph.inferred import Attempts, infer, run_for_real, shapes

REPRESENTATIVE = (
    "alexnet", "vgg11_bn", "squeezenet1_1", "resnet18", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v3_small", "efficientnet_b0", "vit_b_32", "swin_t", "maxvit_t",
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "r3d_18", "s3d", "mvit_v2_s",
)  # fmt: skip
# RegNet's constructor reads values, which meta tensors do not have.
REAL_CONSTRUCTORS = ("regnet_y_400mf", "regnet_x_400mf")
DETECTORS = ("rcnn", "ssd", "fcos", "retinanet")


def torchvision_model(name: str) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if "googlenet" in name or "inception" in name:
        options["init_weights"] = False
    if name.startswith(("deeplab", "fcn", "lraspp")):
        options["weights_backbone"] = None
    if name.startswith("quantized"):
        options["quantize"] = False
    with torch.device("cpu" if name.startswith("regnet") else "meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("name", [*REPRESENTATIVE, *REAL_CONSTRUCTORS])
def test_torchvision(name: str) -> None:
    attempts = Attempts(torchvision_model(name))
    example = infer_example(attempts.model, attempts)
    assert example.train is None
    assert {train for tried, train in attempts.passed if shapes(tried) == shapes(example)} == {
        False,
        True,
    }
    assert shapes(example)[0][:2] == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in torchvision.models.list_models()
        if not any(kind in name for kind in DETECTORS)
        and name not in REPRESENTATIVE
        and not name.startswith("regnet")
    ],
)
def test_every_torchvision_model(name: str) -> None:
    test_torchvision(name)


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-b3"])
def test_efficientnet_pytorch(name: str) -> None:
    from efficientnet_pytorch import EfficientNet

    with torch.device("meta"):
        model = EfficientNet.from_name(name)
    assert shapes(infer(model))[0][:2] == (2, 3)


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
WIDE = {**TINY, "intermediate_size": 64}
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForSequenceClassification": ("BertConfig", {**WIDE, "vocab_size": 100}),
    "LayoutLMForTokenClassification": ("LayoutLMConfig", {**WIDE, "vocab_size": 100}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 99}),
    # Refuses a batch of two without a padding token.
    "GPT2ForSequenceClassification": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 99},
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 99},
    ),
    "ViTForImageClassification": ("ViTConfig", {**WIDE, "image_size": 48, "patch_size": 16}),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    "Wav2Vec2ForSequenceClassification": (
        "Wav2Vec2Config",
        {
            **WIDE,
            "vocab_size": 32,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "classifier_proj_size": 16,
        },
    ),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {**SEQ2SEQ, **MARKS, "vocab_size": 99, "begin_suppress_tokens": None},
    ),
    "ASTForAudioClassification": ("ASTConfig", {**WIDE, "max_length": 64, "num_mel_bins": 32}),
    "TimesformerForVideoClassification": (
        "TimesformerConfig",
        {**WIDE, "image_size": 32, "patch_size": 16},
    ),
    "CLIPModel": (
        "CLIPConfig",
        {
            "text_config": {**WIDE, "vocab_size": 99, "eos_token_id": 2},
            "vision_config": {**WIDE, "image_size": 32, "patch_size": 16},
        },
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, options = TRANSFORMERS[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**options))
    example = infer(model)
    run_for_real(model, example, train=False)


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "levit_128s", "mixer_s32_224", "csatv2", "efficientvit_b0", "tresnet_m"],
)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    side = model.pretrained_cfg["input_size"][1]
    assert shapes(infer(model)) == [(2, 3, side, side)]
