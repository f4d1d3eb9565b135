"""Which layer makes the classes? Ours, beside the two things people do today.

Every classification, segmentation and video model of torchvision is built for 37 classes, a
number that nothing else in it has: the heads are the layers of 37 outputs, auxiliary ones too. A
way of looking is right where it names exactly these.

Run with ``python -m benchmarks.heads``; the table goes to ``benchmarks/results/heads.md``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision import models

from surgery.families.registry import Registry
from surgery.heads import find_heads

CLASSES = 37
TASKS = {
    "classification": models.list_models(module=models),
    "segmentation": models.list_models(module=models.segmentation),
    "video": models.list_models(module=models.video),
}
RESULTS = Path(__file__).parent / "results" / "heads.md"


def build(name: str) -> nn.Module:
    # The constructor of RegNet computes on its weights, which meta tensors cannot.
    with torch.device("cpu" if "regnet" in name else "meta"):
        settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name in TASKS["segmentation"]:
            settings = {"weights_backbone": None}
        return models.get_model(name, num_classes=CLASSES, **settings)


def truth(model: nn.Module) -> set[str]:
    outputs = {
        name: getattr(layer, "out_features", getattr(layer, "out_channels", None))
        for name, layer in model.named_modules()
    }
    return {name for name, size in outputs.items() if size == CLASSES}


def by_graph(model: nn.Module) -> set[str]:
    return {head.address for head in find_heads(model, registry=Registry.of())}


def last_linear(model: nn.Module) -> set[str]:
    found = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return set(found[-1:])


def usual_names(model: nn.Module) -> set[str]:
    """The first of these attributes, where it is a layer (and no container of them)."""
    for name in ("fc", "classifier", "head", "score"):
        layer = getattr(model, name, None)
        if isinstance(layer, nn.Module):
            return {name} if not list(layer.children()) else set()
    return set()


WAYS: dict[str, Callable[[nn.Module], set[str]]] = {
    "surgery.find_heads, no plugin": by_graph,
    "the last nn.Linear in named_modules()": last_linear,
    "the names fc, classifier, head, score": usual_names,
}


def measure() -> tuple[dict[str, dict[str, int]], dict[str, list[str]], float]:
    """How often each way is right, by task; what it misses; seconds that ours took."""
    right = {way: dict.fromkeys(TASKS, 0) for way in WAYS}
    missed: dict[str, list[str]] = {way: [] for way in WAYS}
    seconds = 0.0
    for task, names in TASKS.items():
        for name in names:
            model = build(name)
            for way, find in WAYS.items():
                start = time.perf_counter()
                found = find(model)
                if find is by_graph:
                    seconds += time.perf_counter() - start
                if found == truth(model):
                    right[way][task] += 1
                else:
                    missed[way].append(name)
    return right, missed, seconds


def table() -> str:
    """The results as Markdown."""
    right, missed, seconds = measure()
    total = sum(len(names) for names in TASKS.values())
    lines = [
        "# Heads found",
        "",
        "Models of torchvision in which exactly the layers that make the classes are named, "
        "auxiliary heads included.",
        "",
        f"| way | {' | '.join(f'{task} ({len(TASKS[task])})' for task in TASKS)} | all ({total}) |",
        f"|---|{'---:|' * (len(TASKS) + 1)}",
    ]
    for way, counts in right.items():
        cells = [str(counts[task]) for task in TASKS]
        lines.append(f"| {way} | {' | '.join(cells)} | **{sum(counts.values())}** |")
    lines += ["", f"One search takes {seconds / total:.2f} s on average, the example inferred.", ""]
    for way, names in missed.items():
        if names:
            lines.append(f"Missed by {way}: {', '.join(names)}.\n")
    lines.append(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table and keep it."""
    text = table()
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
