"""What loading into a live model costs: against the usual recipe, and one fresh copy of the bytes.

python -m benchmarks.load
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import nn

import surgery
from benchmarks.timing import THREADS, duration, machine, markdown, publish, times

MODELS = {"VGG-16": "vgg16", "ViT-H/14": "vit_h_14", "ResNet-152": "resnet152"}
CLASSES = 5
ROUNDS = 5

WHAT = """A model of torchvision with five classes gets the weights of one with a thousand from a \
file of `torch.save`, all of it but the head. Each task runs in a process of its own, on a model \
made there, in turn over the rounds; the file is in the page cache. A time is the median over the \
rounds, a ratio the median of the ratios of each round.

- copy: the file read once into fresh memory, and nothing else.
- recipe: `torch.load(weights_only=True)`, filter by name and shape, \
`load_state_dict(strict=False)`. It can be neither undone nor taken back half way.
- `load_weights`: the same with `surgery.load_weights(model, path)`, verified; the old values are \
kept for `undo()`.
- from memory: `load_weights` from a state dict that is in memory already.
- forward: until the end of the first forward in eval mode after it, one image of 224 pixels.
- memory: growth of the peak resident memory over the model's own."""


def task(how: str, name: str, path: Path) -> dict[str, float]:
    """Load once; seconds until it is done, and until a forward is; bytes of peak memory."""
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    model = torchvision.models.get_model(name, num_classes=CLASSES).eval()
    small = nn.Linear(2, 2)
    surgery.load_weights(small, small.state_dict()).undo()
    state = torch.load(path, weights_only=True) if how == "memory" else {}
    images = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        model(images)
    ways: dict[str, Callable[[], object]] = {
        "copy": lambda: copied(path),
        "recipe": lambda: recipe(model, path),
        "load_weights": lambda: surgery.load_weights(model, path),
        "memory": lambda: surgery.load_weights(model, state),
    }
    clear_peak()
    before = peak()
    start = time.perf_counter()
    kept = ways[how]()
    ready = time.perf_counter() - start
    grown = peak() - before
    with torch.no_grad():
        model(images)
    forward = time.perf_counter() - start
    del kept
    return {"ready": ready, "forward": forward, "memory": grown}


def copied(path: Path) -> torch.Tensor:
    memory = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with path.open("rb", buffering=0) as file:
        left = memoryview(memory.numpy())
        while left:
            left = left[file.readinto(left) :]
    return memory


def recipe(model: nn.Module, path: Path) -> None:
    state = torch.load(path, weights_only=True, map_location="cpu")
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)


def clear_peak() -> None:
    """Let Linux count the peak of resident memory anew."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists() and os.access(reset, os.W_OK):
        reset.write_text("5", "utf-8")


def peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return float(lines["VmHWM"].split()[0]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024)


def apart(how: str, name: str, path: Path) -> dict[str, float]:
    """A task in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", how, name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(rounds: int) -> str:
    rows = []
    for title, name in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pth"
            torch.save(torchvision.models.get_model(name).state_dict(), path)
            size = path.stat().st_size
            hows = ("copy", "recipe", "load_weights", "memory")
            runs = [{how: apart(how, name, path) for how in hows} for _ in range(rounds)]
        for how in hows:
            least = median(run[how]["ready"] for run in runs)
            forward = median(run[how]["forward"] for run in runs)
            memory = median(run[how]["memory"] for run in runs)
            ratios = [
                times(median(run[how]["ready"] / run[other]["ready"] for run in runs))
                for other in ("copy", "recipe")
            ]
            label = {"load_weights": "`load_weights`", "memory": "from memory"}.get(how, how)
            rows.append(
                [
                    f"{title} ({size / 1e6:.0f} MB), {label}",
                    duration(least),
                    *ratios,
                    duration(forward),
                    f"{memory / 1e6:.0f} MB",
                ]
            )
    headers = ["", "ready", "over copy", "over recipe", "first forward", "memory"]
    return markdown(headers, rows)


def main(rounds: int = ROUNDS) -> None:
    publish(
        "load", "What loading into a live model costs", WHAT, table(rounds), machine("torchvision")
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(task(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
