"""Video classifiers as torchvision builds them: R3D, MC3 and R(2+1)D, S3D, MViT, Swin3D.

Tran et al., https://arxiv.org/abs/1711.11248; Xie et al., https://arxiv.org/abs/1712.04851;
Fan et al., https://arxiv.org/abs/2104.11227 and Li et al., https://arxiv.org/abs/2112.01526;
Liu et al., https://arxiv.org/abs/2106.13230.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery.families.resizing import Fixed, Follower, Positions, RelativePositions, check_multiple
from surgery_plugins.grouping import group, pools
from surgery_plugins.inputs import samples

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages
    from surgery.graph.example import Example

TARGET = "torchvision.models.video"
S3D_STEM = ("features.0",)


def s3d_stages(model: nn.Module) -> Stages:
    """The layers between two poolings."""
    return group(model, "features", pools, S3D_STEM)


def mvit_example(model: Any) -> Example:
    """As many frames of the one size that the position encoding is for."""
    from surgery.graph.example import Example

    patches = model.pos_encoding
    cells = (patches.temporal_size, *patches.spatial_size)
    sizes = (n * stride for n, stride in zip(cells, model.conv_proj.stride, strict=True))
    return Example((samples(model.conv_proj, *sizes),))


def mvit_stages(model: nn.Module) -> Stages:
    """One stage for each block; the last norm belongs to the last of them."""
    *blocks, last = group(model, "blocks")
    return (*blocks, (*last, "norm"))


def mvit_resize(model: Any, size: tuple[int, int]) -> Iterator[Follower]:
    """The frames stay. A table along one axis serves the longer side of the cells it is for."""
    place = model.pos_encoding
    check_multiple(size, 32)
    old, (_, *strides) = tuple(place.spatial_size), model.conv_proj.stride
    new = tuple(length // stride for length, stride in zip(size, strides, strict=True))
    yield Fixed("pos_encoding", "spatial_size", new)
    if place.spatial_pos is not None:
        yield Positions("pos_encoding.spatial_pos", old, new)
    for address, tensor in model.named_parameters():
        if address.endswith(("rel_pos_h", "rel_pos_w")):
            cells = (len(tensor) + 1) // 2
            yield RelativePositions(address, (cells,), (cells * max(new) // max(old),))


RESNET = Family(
    name="video_resnet",
    classes=("torchvision.models.video.resnet.VideoResNet",),
    packages=("torchvision",),
    example=(2, "stem.0.in_channels", 16, 112, 112),
    heads=(HeadClaim("fc"),),
    stem=("stem",),
    stages=(("layer1",), ("layer2",), ("layer3",), ("layer4",)),
    catalog={name: f"{TARGET}:{name}" for name in ("r3d_18", "mc3_18", "r2plus1d_18")},
)

S3D = Family(
    name="s3d",
    classes=("torchvision.models.video.s3d.S3D",),
    packages=("torchvision",),
    example=(2, "features.0.0.0.in_channels", 16, 224, 224),
    heads=(HeadClaim("classifier"),),
    stem=S3D_STEM,
    stages=s3d_stages,
    catalog={"s3d": f"{TARGET}:s3d"},
)

MVIT = Family(
    name="mvit",
    classes=("torchvision.models.video.mvit.MViT",),
    packages=("torchvision",),
    example=mvit_example,
    heads=(HeadClaim("head"),),
    stem=("conv_proj", "pos_encoding"),
    stages=mvit_stages,
    resize=mvit_resize,
    catalog={name: f"{TARGET}:{name}" for name in ("mvit_v1_b", "mvit_v2_s")},
)

SWIN = Family(
    name="swin3d",
    classes=("torchvision.models.video.swin_transformer.SwinTransformer3d",),
    packages=("torchvision",),
    example=(2, "patch_embed.proj.in_channels", 16, 224, 224),
    heads=(HeadClaim("head"),),
    stem=("patch_embed",),
    stages=(
        ("features.0",),
        ("features.1", "features.2"),
        ("features.3", "features.4"),
        ("features.5", "features.6", "norm"),
    ),
    sync=("num_classes",),
    catalog={name: f"{TARGET}:{name}" for name in ("swin3d_t", "swin3d_s", "swin3d_b")},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register the four."""
    return [RESNET, S3D, MVIT, SWIN]
