"""What an audit costs: against one bare loop, torchinfo and fvcore.

python -m benchmarks.audit
"""

from __future__ import annotations

import time

import torch
import torchinfo
import torchvision
from fvcore.nn import parameter_count
from torch import nn

import surgery
from benchmarks.timing import (
    MODELS,
    THREADS,
    Timing,
    duration,
    interleave,
    machine,
    markdown,
    publish,
    times,
)

WHAT = """The models are torchvision's, built on `meta`. All tasks run in every round, in an order
drawn anew: the bare loop with the audit, and the audit with its peers. A time is the median over
the rounds, a ratio the median of the ratios of each round.
Times are processor time of the one thread. The bare loop adds up `numel()` of every entry of
`_parameters` of `model.modules()`: the least that any count can do. It sees no buffers, dtypes,
devices, names or sharing."""

TASKS = """- `audit`: `surgery.audit(model)`: everything is collected.
- `+ total`: and the total is read.
- `+ cells`: and everything is added up by kind, dtype and device.
- `+ rows`: and rolled up for every module.
- torchinfo: `torchinfo.summary(model, verbose=0)`; with input, the same with one image on `meta`.
- fvcore: `fvcore.nn.parameter_count(model)`: parameters by module prefix."""


def bare_loop(model: nn.Module) -> int:
    total = 0
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                total += parameter.numel()
    return total


def measure(name: str, size: int, rounds: int) -> dict[str, Timing]:
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        image = torch.zeros(1, 3, size, size)
    least = {
        "bare": lambda: bare_loop(model),
        "audit": lambda: surgery.audit(model),
        "total": lambda: surgery.audit(model).total,
    }
    more = {
        "beside": least["audit"],
        "cells": lambda: surgery.audit(model).cells,
        "rows": lambda: surgery.audit(model).rows,
        "torchinfo": lambda: torchinfo.summary(model, verbose=0),
        "input": lambda: torchinfo.summary(model, input_data=image, verbose=0),
        "fvcore": lambda: parameter_count(model),
    }
    expected = sum(parameter.numel() for parameter in model.parameters())
    found = {bare_loop(model), surgery.audit(model).total, parameter_count(model)[""]}
    if found != {expected}:
        raise SystemExit(f"{name}: the counts differ: {found}, expected {expected}")
    return {
        **interleave(least, rounds=4 * rounds, clock=time.thread_time),
        **interleave(more, rounds=rounds, clock=time.thread_time),
    }


def main(rounds: int = 15) -> None:
    torch.set_num_threads(THREADS)
    costs, ratios = [], []
    for title, (name, size) in MODELS.items():
        found = measure(name, size, rounds)
        bare, beside = found["bare"], found["beside"]
        peers = ("torchinfo", "input", "fvcore")
        costs.append([title, *(duration(found[task].median) for task in ("bare", "audit", *peers))])
        ratios.append(
            [
                title,
                *(times(found[task].over(bare)) for task in ("audit", "total")),
                *(times(found[task].over(beside)) for task in ("cells", "rows", *peers)),
            ]
        )
    publish(
        "audit",
        "What an audit costs",
        WHAT,
        TASKS,
        markdown(["", "bare loop", "audit", "torchinfo", "with input", "fvcore"], costs),
        "How many times as long as the bare loop (`audit`, `+ total`) or the audit (the others):",
        markdown(
            ["", "audit", "+ total", "+ cells", "+ rows", "torchinfo", "with input", "fvcore"],
            ratios,
        ),
        machine("torchvision", "torchinfo", "fvcore"),
    )


if __name__ == "__main__":
    main()
