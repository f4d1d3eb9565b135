"""How many blocks each EfficientNet has (Tan and Le, https://arxiv.org/abs/1905.11946).

Some packages number the blocks through, others within their stage: renaming counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

# How many blocks a stage of B0 has, and how many times as many the other variants have.
REPEATS = (1, 2, 2, 3, 3, 4, 1)
DEPTHS = (
    *(("b0", 1.0), ("b1 and b2", 1.1), ("b3", 1.4), ("b4", 1.8), ("b5", 2.2)),
    *(("b6", 2.6), ("b7", 3.1), ("b8", 3.6), ("l2", 5.3)),
)


def places(depth: float) -> Iterator[tuple[int, int, int]]:
    """Of every block of a variant: its number, its stage, and its number within the stage."""
    counts = [math.ceil(depth * repeats) for repeats in REPEATS]
    within = ((stage, block) for stage, count in enumerate(counts) for block in range(count))
    return ((number, stage, block) for number, (stage, block) in enumerate(within))
