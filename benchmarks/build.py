"""What building a model with its weights costs: against the recipe, timm and transformers.

python -m benchmarks.build          # all
python -m benchmarks.build VGG-16   # one, printed and not written
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.load import clear_peak, peak, recipe
from benchmarks.timing import duration, machine, markdown, publish, times

CLASSES = 5
HOWS = ("own", "build", "mapped")
OWN = {
    "torchvision": "the usual recipe",
    "timm": "`create_model`",
    "transformers": "`from_pretrained`",
}
# For each row of the table: what the libraries call it, and the rounds. There is no VGG in
# transformers: a vision transformer of as many bytes stands in for it.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "VGG-16": (
        {
            "torchvision": "vgg16",
            "timm": "vgg16",
            "transformers": {
                "hidden_size": 976,
                "intermediate_size": 3904,
                "num_attention_heads": 16,
            },
        },
        5,
    ),
    "ViT-H/14": (
        {
            "torchvision": "vit_h_14",
            "timm": "vit_huge_patch14_224",
            "transformers": {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_attention_heads": 16,
                "num_hidden_layers": 32,
                "patch_size": 14,
            },
        },
        3,
    ),
}

WHAT = """A model with five classes is built and gets the weights of one with a thousand from a \
file, all of them but the head's. Each library's own way is compared with `surgery.build` on the \
same architecture and the same file; beside VGG-16, which transformers does not have, a ViT of as \
many bytes stands. Each task runs in a process of its own, in turn over the rounds; the file is \
in the page cache. A time is the median over the rounds, a ratio the median of the ratios of \
each round.

- the usual recipe: the constructor of torchvision, `torch.load(weights_only=True)`, filter by \
name and shape, `load_state_dict(strict=False)`; a file of `torch.save`.
- `create_model`: of timm, `pretrained=True` with `pretrained_cfg_overlay=dict(file=...)` and \
`num_classes=5`; a file of `torch.save`.
- `from_pretrained`: of transformers, with `num_labels=5` and `ignore_mismatched_sizes=True`; a \
file of `save_pretrained` (safetensors).
- `build`: `surgery.build(constructor, num_classes=5, weights=file)`, private memory, verified.
- `build`, mapped: the same with `mmap=True`.
- first forward: until the end of the first forward after it, in eval mode, one image of 224 \
pixels: what was mapped is read there.
- memory: growth of the peak resident memory over the imports, until the model is ready.

Budgets, against the usual recipe: to ready at least 10 times faster with private memory, 40 \
times mapped; memory one copy of the weights, or under 5 % of the file when mapped."""


def constructor(library: str, model: Any) -> Callable[..., nn.Module]:
    """What makes a model of a library, given ``num_classes``."""
    if library == "torchvision":
        from torchvision.models import get_model_builder

        made: Callable[..., nn.Module] = get_model_builder(model)
        return made
    if library == "timm":
        import timm

        return lambda num_classes=1000: timm.create_model(model, num_classes=num_classes)
    from transformers import ViTConfig, ViTForImageClassification

    return lambda num_classes=1000: ViTForImageClassification(
        ViTConfig(**{**model, "num_labels": num_classes})
    )


def write(library: str, model: Any, folder: Path) -> Path:
    """Write the weights of a model with a thousand classes, as the library does."""
    made: Any = constructor(library, model)(num_classes=1000)
    if library == "transformers":
        # Else under the names of an older release, which only transformers knows.
        made.save_pretrained(folder, save_original_format=False)
        return folder / "model.safetensors"
    path = folder / "weights.pth"
    torch.save(made.state_dict(), path)
    return path


def own(library: str, model: Any, path: Path) -> nn.Module:
    """Build a model with five classes and load it as is usual with its library."""
    if library == "torchvision":
        made = constructor(library, model)(num_classes=CLASSES)
        recipe(made, path)
        return made
    if library == "timm":
        import timm

        overlay = {"file": os.fspath(path)}
        timed: nn.Module = timm.create_model(
            model, pretrained=True, num_classes=CLASSES, pretrained_cfg_overlay=overlay
        )
        return timed
    from transformers import ViTForImageClassification

    pretrained: nn.Module = ViTForImageClassification.from_pretrained(
        path.parent, num_labels=CLASSES, ignore_mismatched_sizes=True
    )
    return pretrained


def task(how: str, library: str, model: Any, path: Path) -> dict[str, float]:
    """Build once; seconds until it is done, and until a forward is; bytes of peak memory."""
    warnings.simplefilter("ignore")
    made = imported(how, library, model)
    cache(path)
    images = torch.zeros(1, 3, 224, 224)
    # Else a collection of all that the imports made falls to whichever task it happens in.
    gc.collect()
    gc.freeze()
    clear_peak()
    before = peak()
    start = time.perf_counter()
    if how == "own":
        built = own(library, model, path)
    else:
        import surgery

        outcome = surgery.build(made, num_classes=CLASSES, weights=path, mmap=how == "mapped")
        built = outcome.model
    ready = time.perf_counter() - start
    grown = peak() - before
    with torch.no_grad():
        built.eval()(images)
    return {"ready": ready, "forward": time.perf_counter() - start, "memory": grown}


def imported(how: str, library: str, model: Any) -> Callable[..., nn.Module]:
    """The constructor, with all imported that the task will: imports are not measured."""
    made = constructor(library, model)
    if how != "own":
        import surgery

        small = nn.Linear(2, 2).state_dict()
        surgery.build(lambda num_classes: nn.Linear(2, num_classes), num_classes=2, weights=small)
    with torch.no_grad():
        nn.Conv2d(3, 1, 3)(torch.zeros(1, 3, 8, 8))
    return made


def cache(path: Path) -> None:
    """Read a file once, so that it lies in the page cache."""
    part = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(part):
            pass


def apart(*arguments: object) -> Any:
    """A task in a process of its own, given and returned as JSON."""
    command = [sys.executable, "-m", "benchmarks.build", "--apart", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arguments[:2]} ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(title: str) -> list[list[str]]:
    models, rounds = MODELS[title]
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for library, model in models.items():
            place = Path(folder) / library
            place.mkdir()
            paths[library] = apart("write", library, model, os.fspath(place))
        sizes = {library: Path(path).stat().st_size for library, path in paths.items()}
        tasks = [(library, how) for library in models for how in HOWS]
        runs = [
            {
                (library, how): apart(how, library, models[library], paths[library])
                for library, how in tasks
            }
            for _ in range(rounds)
        ]
    return [row(title, library, how, sizes[library], runs) for library, how in tasks]


def row(
    title: str,
    library: str,
    how: str,
    size: int,
    runs: Sequence[Mapping[tuple[str, str], Mapping[str, float]]],
) -> list[str]:
    def middle(what: str) -> float:
        return median(run[library, how][what] for run in runs)

    def faster(what: str) -> str:
        return times(median(run[library, "own"][what] / run[library, how][what] for run in runs))

    label = {"own": OWN[library], "build": "`build`", "mapped": "`build`, mapped"}[how]
    return [
        f"{title}, {library} ({size / 1e6:.0f} MB), {label}",
        duration(middle("ready")),
        faster("ready"),
        duration(middle("forward")),
        faster("forward"),
        f"{middle('memory') / 1e6:.0f} MB",
        f"{middle('memory') / size:.1%}",
    ]


def table(found: list[list[str]]) -> str:
    headers = ["", "ready", "faster", "first forward", "faster", "memory", "of the file"]
    return markdown(headers, found)


def main() -> None:
    ran = machine("torchvision", "timm", "transformers")
    found: list[list[str]] = []
    for title in MODELS:
        # Written after each model: the next one takes minutes.
        found += rows(title)
        publish("build", "What building a model with its weights costs", WHAT, table(found), ran)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--apart"]:
        how, library, model, place = json.loads(sys.argv[2])
        if how == "write":
            print(json.dumps(os.fspath(write(library, model, Path(place)))))
        else:
            print(json.dumps(task(how, library, model, Path(place))))
    elif sys.argv[1:]:
        print(table([each for title in sys.argv[1:] for each in rows(title)]))
    else:
        main()
