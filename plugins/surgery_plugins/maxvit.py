"""MaxViT as torchvision builds it (Tu et al., https://arxiv.org/abs/2204.01697)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surgery.families import Family, HeadClaim, hookimpl
from surgery.families.resizing import Fixed, Follower, RelativePositions, check_multiple

STRIDE = 32


def resize(model: Any, size: tuple[int, int]) -> Iterator[Follower]:
    """Partitions of one 32nd of the image, as published: then they fill every stage evenly."""
    check_multiple(size, STRIDE, square=True)
    new, length = size[0] // STRIDE, size[0] // 2
    yield Fixed("", "partition_size", new)
    for stage, block in enumerate(model.blocks):
        length //= 2
        yield Fixed(f"blocks.{stage}", "grid_size", (length, length))
        for name, layer in block.named_modules(prefix=f"blocks.{stage}"):
            if hasattr(layer, "partition_type"):
                count = length // new
                window = layer.partition_type == "window"
                yield Fixed(name, "grid_size", (length, length))
                yield Fixed(name, "n_partitions", count)
                yield Fixed(name, "p", new if window else count)
                yield Fixed(name, "g", count if window else new)
            elif hasattr(layer, "relative_position_bias_table"):
                table, index = (f"{name}.relative_position_{x}" for x in ("bias_table", "index"))
                yield RelativePositions(table, (layer.size,) * 2, (new,) * 2, index)
                yield Fixed(name, "size", new)
                yield Fixed(name, "max_seq_len", new * new)


FAMILY = Family(
    name="maxvit",
    classes=("torchvision.models.maxvit.MaxVit",),
    packages=("torchvision",),
    example=(2, "stem.0.0.in_channels", 224, 224),
    heads=(HeadClaim("classifier.5"),),
    stem=("stem",),
    stages=(
        ("blocks.0",),
        ("blocks.1",),
        ("blocks.2",),
        ("blocks.3",),
        ("classifier.2", "classifier.3"),
    ),
    resize=resize,
    catalog={"maxvit_t": "torchvision.models:maxvit_t"},
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register MaxViT."""
    return [FAMILY]
