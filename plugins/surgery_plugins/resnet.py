"""ResNet, ResNeXt and Wide ResNet as torchvision builds them: one class, several widths.

He et al., https://arxiv.org/abs/1512.03385; Xie et al., https://arxiv.org/abs/1611.05431;
Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146. The quantizable variants are
subclasses and are claimed with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgery.families import Family, HeadClaim, hookimpl

# Hugging Face counts layers in one list and names the last block's pieces by position.
TRANSFORMERS = (
    (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    (r"^(?:resnet\.)?encoder\.stages\.0\.", "layer1."),
    (r"^(?:resnet\.)?encoder\.stages\.1\.", "layer2."),
    (r"^(?:resnet\.)?encoder\.stages\.2\.", "layer3."),
    (r"^(?:resnet\.)?encoder\.stages\.3\.", "layer4."),
    (r"^(layer\d)\.layers\.", r"\1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.0\.convolution\.", ".conv1."),
    (r"\.layer\.0\.normalization\.", ".bn1."),
    (r"\.layer\.1\.convolution\.", ".conv2."),
    (r"\.layer\.1\.normalization\.", ".bn2."),
    (r"\.layer\.2\.convolution\.", ".conv3."),
    (r"\.layer\.2\.normalization\.", ".bn3."),
    (r"^classifier\.1\.", "fc."),
)

FAMILY = Family(
    name="resnet",
    classes=("torchvision.models.resnet.ResNet",),
    packages=("torchvision",),
    example=(2, "conv1.in_channels", 224, 224),
    heads=(HeadClaim("fc"),),
    stem=("conv1", "bn1"),
    stages=(("layer1",), ("layer2",), ("layer3",), ("layer4",)),
    renames={"transformers": TRANSFORMERS},
    catalog={
        name: f"torchvision.models:{name}"
        for name in (
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "resnext50_32x4d",
            "resnext101_32x8d",
            "resnext101_64x4d",
            "wide_resnet50_2",
            "wide_resnet101_2",
        )
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register ResNet."""
    return [FAMILY]
