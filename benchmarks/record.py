"""What a recording costs: against a plain forward pass on meta.

python -m benchmarks.record
"""

from __future__ import annotations

import sys

import torch
import torchvision

from benchmarks.timing import (
    MODELS,
    THREADS,
    duration,
    interleave,
    machine,
    markdown,
    publish,
    times,
)
from surgery.graph import remembered
from surgery.graph.example import Example
from surgery.graph.record import record_graph

WHAT = """The models are torchvision's, built on `meta`, and the input is two images there. All \
tasks run in turn in every round; a time is the median over the rounds, a ratio the median of the \
ratios of each round. The budget is 1.5 times a plain forward.

- plain: `model(x)` under `torch.no_grad()`.
- first: `record_graph` with nothing remembered, as the first recording in a process.
- again: `record_graph` when what the `meta` kernels return for such shapes is remembered: a \
verified operation records a model several times.
- shapes: the same without operations, for the shapes of the outputs alone."""


def measure(name: str, size: int, train: bool, rounds: int) -> list[str]:
    with torch.device("meta"):
        model = torchvision.models.get_model(name).train(train)
        x = torch.zeros(2, 3, size, size)
    example = Example((x,))

    def plain() -> None:
        with torch.no_grad():
            model(x)

    def first() -> None:
        remembered.forget()
        record_graph(model, example)

    def again() -> None:
        record_graph(model, example)

    def shapes() -> None:
        record_graph(model, example, operations=False)

    # Interleaved apart: the first recording makes the others forget, and they would pay for it.
    cold = interleave({"plain": plain, "first": first}, rounds=rounds)
    warm = interleave({"plain": plain, "again": again, "shapes": shapes}, rounds=rounds)
    return [
        duration(warm["plain"].median),
        duration(cold["first"].median),
        times(cold["first"].over(cold["plain"])),
        duration(warm["again"].median),
        times(warm["again"].over(warm["plain"])),
        times(warm["shapes"].over(warm["plain"])),
    ]


def main(rounds: int = 15) -> None:
    torch.set_num_threads(THREADS)
    rows = [
        [f"{title}, {'train' if train else 'eval'}", *measure(name, size, train, rounds)]
        for title, (name, size) in MODELS.items()
        for train in (False, True)
    ]
    headers = ["model", "plain", "first", "ratio", "again", "ratio", "shapes, ratio"]
    publish(
        "record",
        "What a recording costs",
        WHAT,
        markdown(headers, rows),
        machine("torchvision"),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
