"""Vision Transformer as torchvision builds it (Dosovitskiy et al., https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery.families.resizing import Fixed, Follower, Positions, check_multiple
from surgery_plugins.grouping import group
from surgery_plugins.inputs import samples

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages
    from surgery.graph.example import Example

# Before version 0.13 torchvision named the two layers of the MLP; then it numbered them.
LEGACY = ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))

TIMM = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
)


def example(model: Any) -> Example:
    """Two images of the size that the position embedding is for; the stem may be several layers."""
    from surgery.graph.example import Example

    return Example((samples(model.conv_proj, model.image_size, model.image_size),))


def stages(model: nn.Module) -> Stages:
    """One stage for each layer; the last norm belongs to the last of them."""
    *layers, last = group(model, "encoder.layers")
    return (*layers, (*last, "encoder.ln"))


def resize(model: Any, size: tuple[int, int]) -> Iterator[Follower]:
    """A cell for every patch, and the class token apart; images are square."""
    check_multiple(size, model.patch_size, square=True)
    old, new = model.image_size // model.patch_size, size[0] // model.patch_size
    tokens = model.seq_length - old * old
    yield Fixed("", "image_size", size[0])
    yield Fixed("", "seq_length", tokens + new * new)
    yield Positions("encoder.pos_embedding", (old, old), (new, new), tokens)


FAMILY = Family(
    name="vision_transformer",
    classes=("torchvision.models.vision_transformer.VisionTransformer",),
    packages=("torchvision",),
    example=example,
    heads=(HeadClaim("heads"),),
    stem=("conv_proj", "class_token", "encoder.pos_embedding"),
    stages=stages,
    sync=("num_classes",),
    resize=resize,
    renames={"torchvision legacy": LEGACY, "timm": TIMM},
    catalog={
        f"vit_{size}": f"torchvision.models:vit_{size}"
        for size in ("b_16", "b_32", "l_16", "l_32", "h_14")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the Vision Transformer."""
    return [FAMILY]
