"""Swin Transformer v1 and v2 as torchvision builds them: one class.

Liu et al., https://arxiv.org/abs/2103.14030 and https://arxiv.org/abs/2111.09883.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery.families.resizing import Fixed, Follower, Recomputed, RelativePositions

# timm has a stage begin with its patch merging, and torchvision counts that as a layer.
TIMM = (
    (r"^patch_embed\.proj\.", "features.0.0."),
    (r"^patch_embed\.norm\.", "features.0.2."),
    (r"^layers\.0\.blocks\.", "features.1."),
    (r"^layers\.1\.downsample\.", "features.2."),
    (r"^layers\.1\.blocks\.", "features.3."),
    (r"^layers\.2\.downsample\.", "features.4."),
    (r"^layers\.2\.blocks\.", "features.5."),
    (r"^layers\.3\.downsample\.", "features.6."),
    (r"^layers\.3\.blocks\.", "features.7."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^head\.fc\.", "head."),
)

# An image of so many windows along each side fills the last stage with one.
STRIDE = 32


def resize(model: Any, size: tuple[int, int]) -> Iterator[Follower]:
    """Windows of one 32nd of the image, as published; they stay where those are not whole, or one.

    Positions are interpolated in v1; v2 computes them from coordinates, which one cell has not.
    """
    if any(length % STRIDE or length == STRIDE for length in size):
        return
    new = [length // STRIDE for length in size]
    for address, module in model.named_modules():
        if not hasattr(module, "define_relative_position_index"):
            continue
        old = tuple(module.window_size)
        yield Fixed(address, "window_size", new)
        shifted = any(module.shift_size)
        yield Fixed(address, "shift_size", [length // 2 * shifted for length in new])
        index, table = (f"{address}.relative_position_{name}" for name in ("index", "bias_table"))
        continuous = hasattr(module, "relative_coords_table")
        yield RelativePositions("" if continuous else table, old, tuple(new), index)
        if continuous:
            method = "define_relative_position_bias_table"
            yield Recomputed(address, method, ("relative_coords_table",))


FAMILY = Family(
    name="swin",
    classes=("torchvision.models.swin_transformer.SwinTransformer",),
    packages=("torchvision",),
    example=(2, "features.0.0.in_channels", 224, 224),
    heads=(HeadClaim("head"),),
    stem=("features.0",),
    stages=(
        ("features.1",),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "norm"),
    ),
    sync=("num_classes",),
    resize=resize,
    renames={"timm": TIMM},
    catalog={
        f"swin_{size}": f"torchvision.models:swin_{size}"
        for size in ("t", "s", "b", "v2_t", "v2_s", "v2_b")
    },
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register Swin."""
    return [FAMILY]
