"""Pairs of models that are one architecture in two libraries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.implementations import VOCABULARY, Model

# A small image where the model takes any; the published size where it does not.
SIDE = 64


@dataclass(frozen=True)
class Twin:
    """Two models of one architecture, and the size of the images they are compared on."""

    one: Model
    other: Model
    size: int
    words: int = 12

    def __str__(self) -> str:
        return f"{self.one} and {self.other}"

    def example(self) -> torch.Tensor:
        """What both take."""
        if self.size == 0:
            return torch.zeros(1, self.words, dtype=torch.int64)
        return torch.zeros(1, 3, self.size, self.size, device="meta")


# torchvision's name, timm's where it is another, and the size where only one will do.
_TORCHVISION: tuple[tuple[str, str, int], ...] = (
    *((f"resnet{n}", "", SIDE) for n in (18, 34, 50, 101, 152)),
    *((name, "", SIDE) for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")),
    *((name, "", SIDE) for name in ("wide_resnet50_2", "wide_resnet101_2")),
    *((f"vgg{n}{norm}", "", 224) for n in (11, 13, 16, 19) for norm in ("", "_bn")),
    *((f"densenet{n}", "", SIDE) for n in (121, 161, 169, 201)),
    ("inception_v3", "", 299),
    ("mobilenet_v2", "mobilenetv2_100", SIDE),
    ("mobilenet_v3_small", "mobilenetv3_small_100", SIDE),
    ("mobilenet_v3_large", "mobilenetv3_large_100", SIDE),
    *((f"mnasnet{n}", f"mnasnet_{m}", SIDE) for n, m in (("0_5", "050"), ("0_75", "075"))),
    *((f"mnasnet{n}", f"mnasnet_{m}", SIDE) for n, m in (("1_0", "100"),)),
    *((f"efficientnet_b{n}", "", SIDE) for n in range(8)),
    *((f"efficientnet_v2_{n}", f"efficientnetv2_{n}", SIDE) for n in "sml"),
    ("regnet_y_400mf", "regnety_004", SIDE),
    ("regnet_y_800mf", "regnety_008_tv", SIDE),
    ("regnet_y_1_6gf", "regnety_016", SIDE),
    ("regnet_y_3_2gf", "regnety_032", SIDE),
    ("regnet_y_8gf", "regnety_080_tv", SIDE),
    ("regnet_y_16gf", "regnety_160", SIDE),
    ("regnet_y_32gf", "regnety_320", SIDE),
    # 644 million parameters: both and what stands in for them take about 15 GB.
    ("regnet_y_128gf", "regnety_1280", 32),
    ("regnet_x_400mf", "regnetx_004_tv", SIDE),
    ("regnet_x_800mf", "regnetx_008", SIDE),
    ("regnet_x_1_6gf", "regnetx_016", SIDE),
    ("regnet_x_3_2gf", "regnetx_032", SIDE),
    ("regnet_x_8gf", "regnetx_080", SIDE),
    ("regnet_x_16gf", "regnetx_160", SIDE),
    ("regnet_x_32gf", "regnetx_320", SIDE),
    *((f"convnext_{n}", "", SIDE) for n in ("tiny", "small", "base", "large")),
    *((f"swin_{n[0]}", f"swin_{n}_patch4_window7_224", 224) for n in ("tiny", "small", "base")),
    *((f"swin_v2_{n[0]}", f"swinv2_{n}_window8_256", 256) for n in ("tiny", "small", "base")),
    ("vit_b_16", "vit_base_patch16_224", 224),
    ("vit_b_32", "vit_base_patch32_224", 224),
    ("vit_l_16", "vit_large_patch16_224", 224),
    ("vit_l_32", "vit_large_patch32_224", 224),
    ("vit_h_14", "vit_huge_patch14_224", 224),
)

# efficientnet-pytorch pads for one size when it is made, timm for whatever it gets.
_SIDES = (224, 240, 260, 300, 380, 456, 528, 600, 672)
_BIASED = {"use_relative_position_bias": True}
_BIT = {"layer_type": "preactivation", "global_padding": None}

# A class of transformers with what its configuration is given, timm's name, and the size.
_TRANSFORMERS: tuple[tuple[str, dict[str, Any], str, int], ...] = (
    ("ResNetForImageClassification", {}, "resnet50", SIDE),
    (
        "ResNetForImageClassification",
        {
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
            "layer_type": "basic",
        },
        "resnet18",
        SIDE,
    ),
    ("RegNetForImageClassification", {}, "regnety_040", SIDE),
    ("ConvNextForImageClassification", {}, "convnext_tiny", SIDE),
    ("ConvNextV2ForImageClassification", {}, "convnextv2_tiny", SIDE),
    ("ViTForImageClassification", {}, "vit_base_patch16_224", 224),
    ("DeiTForImageClassificationWithTeacher", {}, "deit_base_distilled_patch16_224", 224),
    ("BeitForImageClassification", _BIASED, "beit_base_patch16_224", 224),
    ("BeitForImageClassification", _BIASED, "beitv2_base_patch16_224", 224),
    ("SwinForImageClassification", {}, "swin_tiny_patch4_window7_224", 224),
    (
        "Swinv2ForImageClassification",
        {"image_size": 256, "window_size": 8},
        "swinv2_tiny_window8_256",
        256,
    ),
    ("MobileNetV1ForImageClassification", {"tf_padding": False}, "mobilenetv1_100", 224),
    ("MobileNetV2ForImageClassification", {"tf_padding": False}, "mobilenetv2_100", 224),
    ("EfficientNetForImageClassification", {"image_size": 600}, "tf_efficientnet_b7", SIDE),
    ("LevitForImageClassificationWithTeacher", {}, "levit_128", 224),
    ("PoolFormerForImageClassification", {}, "poolformer_s12", 224),
    ("FocalNetForImageClassification", {}, "focalnet_tiny_srf", 224),
    ("PvtV2ForImageClassification", {}, "pvt_v2_b0", 224),
    ("FocalNetForImageClassification", {"focal_levels": [3, 3, 3, 3]}, "focalnet_tiny_lrf", 224),
    ("HieraForImageClassification", {}, "hiera_base_224", 224),
    ("MobileViTForImageClassification", {}, "mobilevit_s", 256),
    ("MobileViTV2ForImageClassification", {}, "mobilevitv2_100", 256),
    ("Data2VecVisionForImageClassification", _BIASED, "beit_base_patch16_224", 224),
    (
        "Dinov2Model",
        {"image_size": 518},
        "vit_base_patch14_dinov2",
        518,
    ),
    ("BitForImageClassification", _BIT, "resnetv2_50x1_bit", 224),
)

_REGNET_Y = {"depths": [1, 3, 6, 6], "hidden_sizes": [48, 104, 208, 440], "groups_width": 8}
_REGNET_X = {"depths": [1, 2, 7, 12], "hidden_sizes": [32, 64, 160, 400], "groups_width": 16}

# The same with torchvision's name.
_BETWEEN: tuple[tuple[str, dict[str, Any], str, int], ...] = (
    ("ResNetForImageClassification", {}, "resnet50", SIDE),
    ("RegNetForImageClassification", _REGNET_Y, "regnet_y_400mf", SIDE),
    ("RegNetForImageClassification", _REGNET_X | {"layer_type": "x"}, "regnet_x_400mf", SIDE),
    ("ConvNextForImageClassification", {}, "convnext_tiny", SIDE),
    ("ViTForImageClassification", {}, "vit_b_16", 224),
    ("SwinForImageClassification", {}, "swin_t", 224),
    ("Swinv2ForImageClassification", {"image_size": 256, "window_size": 8}, "swin_v2_t", 256),
    ("MobileNetV2ForImageClassification", {"tf_padding": False}, "mobilenet_v2", SIDE),
)

_WIDTH = {"hidden_size": 384, "num_attention_heads": 6}
_SMALL = _WIDTH | {"intermediate_size": 1536}
_SHORT = {"num_hidden_layers": 4}
_FEATURES = {"num_classes": 0}
# All tokens, as the towers of transformers return them; the depth of these is cut on both sides.
_TOKENS = {"num_classes": 0, "global_pool": "", "depth": 4}
_POOLED = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_B0 = {
    "image_size": 224,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
}

_CLIP_TEXT = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_SAM = _TOKENS | {"img_size": 256, "global_attn_indexes": (2,)}

# Where the twin is given something too.
_MORE: tuple[tuple[str, dict[str, Any], Model, int], ...] = (
    ("ViTMSNForImageClassification", _SMALL, Model("timm", "vit_small_patch16_224", {}), 224),
    ("IJepaForImageClassification", _SMALL, Model("timm", "vit_small_patch16_224", _POOLED), 224),
    ("DINOv3ConvNextModel", {}, Model("timm", "convnext_tiny", _FEATURES), SIDE),
    (
        "DINOv3ViTModel",
        {"num_register_tokens": 4, "query_bias": False, "value_bias": False},
        Model("timm", "vit_small_patch16_dinov3", _FEATURES | {"global_pool": "token"}),
        224,
    ),
    ("EfficientNetForImageClassification", _B0, Model("timm", "tf_efficientnet_b0", {}), SIDE),
    (
        "SiglipVisionModel",
        _SHORT | {"hidden_act": "gelu"},
        Model("timm", "vit_base_patch16_siglip_224", _FEATURES | {"depth": 4}),
        224,
    ),
    (
        "SiglipForImageClassification",
        {"vision_config": _SHORT | {"hidden_act": "gelu"}},
        Model("timm", "vit_base_patch16_siglip_gap_224", {"depth": 4}),
        224,
    ),
    (
        "CLIPVisionModel",
        _SHORT,
        Model("timm", "vit_base_patch32_clip_quickgelu_224", _FEATURES | {"depth": 4}),
        224,
    ),
    (
        "CLIPVisionModelWithProjection",
        {},
        Model("open_clip", "ViT-B-32-quickgelu", {"part": "visual"}),
        224,
    ),
    (
        "InternVLVisionModel",
        _SHORT | {"image_size": [224, 224], "attention_bias": True},
        Model("timm", "vit_intern300m_patch14_448", _TOKENS | {"img_size": 224}),
        224,
    ),
    (
        "Aimv2VisionModel",
        _SHORT | {"use_head": False},
        Model("timm", "aimv2_large_patch14_224", _TOKENS),
        224,
    ),
    (
        "SamVisionModel",
        _SHORT | {"image_size": 256, "global_attn_indexes": [2]},
        Model("timm", "samvit_base_patch16", _SAM),
        256,
    ),
    ("Sam2HieraDetModel", {}, Model("timm", "sam2_hiera_tiny", _FEATURES), 256),
    ("SegformerModel", {}, Model("segmentation-models-pytorch", "mit_b0", {}), SIDE),
)

# What is asked for and has no row: there is no second implementation, or no memory for it.
ABSENT: Mapping[str, str] = {
    "CvtForImageClassification": "neither timm nor torchvision has CvT",
    "PvtForImageClassification": "the first PVT; timm has the second alone, which is in the table",
    "DeiTForImageClassification": "it keeps the token of distillation and drops its head; timm "
    "has both or neither. With both it is in the table",
    "Dinov2ForImageClassification": "its head reads the class token beside the mean of all "
    "others; timm's reads one of them. Without a head it is in the table",
    "Dinov2WithRegistersModel": "timm keeps no position for the class token: its converter adds "
    "two tensors up to one, which is no correspondence",
    "BlipVisionModel": "a ViT that normalises the class token twice, and timm's does so once",
    "HGNetV2ForImageClassification": "its head lacks the last convolution that timm's has",
    "DonutSwinForImageClassification": "a Swin without the last normalisation, which timm has",
    "AlignVisionModel": "an EfficientNet B7 without the last convolution, which timm has",
    "RTDetrResNetBackbone": "a ResNet-50-D that gives feature maps; the averages on its way count "
    "what was padded, timm's do not",
    "ViTMAEModel": "it puts the patches in a random order, and timm's ViT keeps theirs",
    "googlenet, shufflenet, squeezenet and alexnet": "torchvision alone has them",
    "TextNetForImageClassification": "neither timm nor torchvision has TextNet",
}


def twins() -> Iterator[Twin]:
    """Every pair, in the order of the table."""
    for name, other, size in _TORCHVISION:
        yield Twin(Model("torchvision", name, {}), Model("timm", other or name, {}), size)
    for number, side in enumerate(_SIDES):
        one = Model("efficientnet-pytorch", f"efficientnet-b{number}", {})
        yield Twin(one, Model("timm", f"tf_efficientnet_b{number}", {}), side)
    for name, settings, other, size in _TRANSFORMERS:
        features = {"num_classes": 0} if name.endswith("Model") else {}
        yield Twin(Model("transformers", name, settings), Model("timm", other, features), size)
    one = Model("transformers", "LevitForImageClassification", {})
    yield Twin(one, Model("timm", "levit_128", {"distilled": False}), 224)
    for name, settings, other, size in _BETWEEN:
        yield Twin(Model("transformers", name, settings), Model("torchvision", other, {}), size)
    for name, settings, twin, size in _MORE:
        yield Twin(Model("transformers", name, settings), twin, size)
    clip = Model("open_clip", "ViT-B-32-quickgelu", {"part": "text"})
    yield Twin(Model("transformers", "CLIPTextModelWithProjection", _CLIP_TEXT), clip, 0, 77)
    bert = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    bert |= {"intermediate_size": 192, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
    yield Twin(Model("transformers", "BertModel", bert), Model("plain torch", "BERT", {}), 0)
    gpt = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
    yield Twin(Model("transformers", "GPT2Model", gpt), Model("plain torch", "GPT-2", {}), 0)


def strangers() -> Iterator[Twin]:
    """Pairs that look alike and are not: here the proof has to fail, and to say why."""
    one = Model("efficientnet-pytorch", "efficientnet-b0", {})
    yield Twin(one, Model("torchvision", "efficientnet_b0", {}), SIDE)
    one = Model("efficientnet-pytorch", "efficientnet-b4", {})
    yield Twin(one, Model("timm", "tf_efficientnet_b4", {}), SIDE)
    one = Model("transformers", "EfficientNetForImageClassification", {"image_size": 600})
    yield Twin(one, Model("torchvision", "efficientnet_b7", {}), SIDE)
    one = Model("torchvision", "maxvit_t", {})
    yield Twin(one, Model("timm", "maxvit_tiny_tf_224", {}), 224)
    # Behind the last activation one keeps the share that dropout lets through in training.
    one = Model("transformers", "PPLCNetForImageClassification", {})
    yield Twin(one, Model("timm", "lcnet_100", {}), SIDE)
    # Attention that is normalised by softmax, and by length.
    one = Model("transformers", "SwiftFormerForImageClassification", {})
    yield Twin(one, Model("timm", "swiftformer_xs", {}), 224)
