"""Interleaved timing, ratios, and the tables that come of them.

Every round runs every task, in an order drawn anew, so that a machine that slows down slows all of
them down, and no task always finds the caches that the same other one left. A ratio is the median
over rounds of two times taken in the same round.
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
THREADS = 1
# What is measured, by the name in the tables: torchvision's name, and the input's size.
MODELS = {
    "ResNet-18": ("resnet18", 224),
    "ResNet-152": ("resnet152", 224),
    "EfficientNet-B7": ("efficientnet_b7", 600),
    "ViT-H/14": ("vit_h_14", 224),
    "Swin-v2-B": ("swin_v2_b", 256),
}

Task = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """The times of one task, a round each, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    def over(self, other: Timing) -> float:
        """How many times as long as another task: the median of the ratios of each round."""
        return statistics.median(
            mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)
        )


def interleave(
    tasks: Mapping[str, Task],
    *,
    rounds: int = 30,
    warm_up: int = 2,
    least: float = 0.005,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time tasks side by side.

    Args:
        tasks: what to time, by name.
        rounds: how many times to take of each.
        warm_up: rounds that do not count.
        least: seconds that a task runs in a round, repeated if it is quicker; its time is the mean.
        clock: ``time.perf_counter``, or ``time.thread_time`` for what runs in this thread alone: it
            does not count what other processes take away.

    Returns:
        The times, by name.
    """
    order = list(tasks)
    draw = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    repeats = {name: _repeats(task, least, clock) for name, task in tasks.items()}
    for number in range(-warm_up, rounds):
        draw.shuffle(order)
        for name in order:
            taken = _time(tasks[name], repeats[name], clock)
            if number >= 0:
                seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def _repeats(task: Task, least: float, clock: Clock) -> int:
    task()
    return max(1, math.ceil(least / _time(task, 1, clock)))


def _time(task: Task, repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        task()
    return (clock() - start) / repeats


def duration(seconds: float) -> str:
    """A time for people: three digits and a unit."""
    value, unit = seconds * 1e6, "µs"
    for larger in ("ms", "s"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def times(ratio: float) -> str:
    """A ratio for people."""
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.2f}x"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headers), line(rule), *map(line, cells)])


def machine(*packages: str) -> str:
    """What it ran on, in one sentence: Python, packages, cores."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", *packages))
    return (
        f"Python {platform.python_version()}, {versions}; {platform.system()} on "
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)."
    )


def publish(name: str, title: str, *paragraphs: str) -> None:
    """Print a result and write it to ``results/<name>.md``."""
    text = "\n\n".join([f"# {title}", *paragraphs]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, "utf-8")
    print(text)
