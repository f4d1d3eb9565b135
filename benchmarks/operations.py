"""What a verified operation costs: against one plain forward in eval and one in train mode.

python -m benchmarks.operations
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import resource
import subprocess
import sys
import time
import tracemalloc
import warnings
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
from surgery.graph import remembered

MEMORY = ("ResNet-152", "ViT-H/14")
CLASSES = 10

WHAT = """The models are torchvision's, built on `meta`, with two images on `meta`. All tasks run \
in turn in every round; a time is the median over the rounds (of the processor, so that other \
work on the machine does not count), a ratio (over E + T) the median of the ratios of each round. \
E and T are one plain forward in eval and one in train mode, under `torch.no_grad()`. The budget \
is 4 times E + T.

- `replace_head`: `surgery.replace_head(model, 10, example=example)`, verified, and its undo: two \
recordings to find the heads, two to try the plan, two to verify it.
- first: the same where no shape is remembered from an earlier recording, as in a new process.
- no example: as `replace_head`, and the family supplies the example or it is inferred."""

HELD = """What `replace_head` holds beside the model, in a process of its own, after one operation \
on another model. Every page of the floating-point weights is made unreadable (`mprotect`) before \
the operation and its undo: a read of one would end the process.

- allocated: the bytes of all real floating-point tensors that torch made on the way.
- new head: those of the new parameters, which are among them.
- Python: the peak of `tracemalloc`: graphs, plans, stand-ins.
- resident: growth of the peak resident memory of the process (without `tracemalloc`)."""


class RealFloats(TorchDispatchMode):
    """Adds up the bytes of new real floating-point memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        # Held, so that no address is given out twice.
        self.seen: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        for value in tree_leaves((args, kwargs or {})):
            self._meet(value)
        known = set(self.seen)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self._meet(value)
        new = [storage for place, storage in self.seen.items() if place not in known]
        self.bytes += sum(storage.nbytes() for storage in new)
        return result

    def _meet(self, value: object) -> None:
        if isinstance(value, torch.Tensor) and not value.is_meta and value.is_floating_point():
            storage = value.untyped_storage()
            self.seen.setdefault(storage.data_ptr(), storage)


def measure(name: str, size: int, rounds: int) -> dict[str, Timing]:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
        images = torch.zeros(2, 3, size, size)

    def plain(train: bool) -> None:
        model.train(train)
        with torch.no_grad():
            model(images)

    def replace(example: torch.Tensor | None = images) -> None:
        surgery.replace_head(model, CLASSES, example=example).undo()

    def first() -> None:
        remembered.forget()
        replace()

    return interleave(
        {
            "eval": lambda: plain(False),
            "train": lambda: plain(True),
            "replace_head": replace,
            "first": first,
            "no example": lambda: replace(None),
        },
        rounds=rounds,
        warm_up=1,
        clock=time.thread_time,
    )


def timings(rounds: int) -> str:
    tasks = ("replace_head", "first", "no example")
    rows = []
    for title, (name, size) in MODELS.items():
        found = measure(name, size, rounds)
        pairs = zip(found["eval"].seconds, found["train"].seconds, strict=True)
        both = Timing(tuple(map(sum, pairs)))
        plain = [duration(found[mode].median) for mode in ("eval", "train")]
        ours = [f"{duration(found[t].median)} ({times(found[t].over(both))})" for t in tasks]
        rows.append([title, *plain, *ours])
    return markdown(["", "E", "T", *tasks], rows)


def unreadable(name: str) -> tuple[nn.Module, mmap.mmap]:
    """A model whose floating-point weights lie in memory that nobody may read or write."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    page = mmap.PAGESIZE
    tensors = [
        (module, table, key, tensor)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for key, tensor in table.items()
        if tensor is not None
    ]
    places, end = [], 0
    for *_, tensor in tensors:
        places.append(end)
        end += math.ceil(tensor.nbytes / page) * page
    memory = mmap.mmap(-1, end)
    for (_, table, key, tensor), place in zip(tensors, places, strict=True):
        if not tensor.is_floating_point():
            table[key] = torch.zeros_like(tensor, device="cpu")
            continue
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=place)
        real = flat.view(tensor.shape)
        table[key] = nn.Parameter(real) if isinstance(tensor, nn.Parameter) else real
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(end), 0):
        raise SystemExit("mprotect failed: whether weights are read cannot be shown")
    _check_unreadable(model)
    return model, memory


def _check_unreadable(model: nn.Module) -> None:
    child = os.fork()
    if not child:
        next(model.parameters()).sum()
        os._exit(0)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        raise SystemExit("the weights can be read after all, so nothing would be shown")


def held(name: str, size: int) -> dict[str, int]:
    """Peak memory of one operation, in bytes; runs in a process of its own."""
    warnings.simplefilter("ignore")
    images = torch.zeros(2, 3, size, size, device="meta")
    other = torchvision.models.get_model("resnet18")
    surgery.replace_head(other, CLASSES, example=torch.zeros(2, 3, 64, 64)).undo()
    model, _memory = unreadable(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    surgery.replace_head(model, CLASSES, example=images).undo()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tracemalloc.start()
    outcome = surgery.replace_head(model, CLASSES, example=images)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    new = sum(tensor.nbytes for tensor in outcome.new.values())
    outcome.undo()
    with RealFloats() as floats:
        surgery.replace_head(model, CLASSES, example=images).undo()
    return {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "allocated": floats.bytes,
        "new": new,
        "python": python,
        "resident": resident * (1 if sys.platform == "darwin" else 1024),
    }


def memory_table() -> str:
    rows = []
    for title in MEMORY:
        command = [sys.executable, "-m", "benchmarks.operations", *map(str, MODELS[title])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{title}: a weight was read, or worse: {done.returncode}\n{done.stderr}"
            )
        found = json.loads(done.stdout)
        columns = ("weights", "allocated", "new", "python", "resident")
        rows.append([title, *(_size(found[key]) for key in columns)])
    return markdown(["", "weights", "allocated", "new head", "Python", "resident"], rows)


def _size(number: int) -> str:
    return f"{number / 1e3:.1f} kB" if number < 1e6 else f"{number / 1e6:,.1f} MB"


def main(rounds: int = 10) -> None:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    publish(
        "operations",
        "What a verified operation costs",
        WHAT,
        timings(rounds),
        HELD,
        memory_table(),
        machine("torchvision"),
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(held(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
