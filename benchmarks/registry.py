"""What does it cost to know all families, and what is that worth beside the graph alone?

python -m benchmarks.registry
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.ssd import SSD

import surgery
from benchmarks.timing import (
    THREADS,
    Timing,
    duration,
    interleave,
    machine,
    markdown,
    publish,
    times,
)
from surgery.families import Catalog, Family
from surgery.families.applied import example_for
from surgery.families.registry import Registry

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "torchvision", "efficientnet_pytorch", "timm", "transformers", "numpy")

WHAT = f"""Each line is a new Python process that does this and nothing else, in turn, in an order \
drawn anew each round; the time is what it costs beyond a process that does nothing, the median \
over the rounds. Processor time. No line but the last may import \
{", ".join(FRAMEWORKS[:-1])} or {FRAMEWORKS[-1]}.

- registry: `import surgery.families.registry`.
- families: that, and `Registry.load` of every plugin that ships, by its entry point.
- installed: `importlib.metadata.entry_points(group="surgery")`, which finds the entry points of \
everything that is installed."""

CLAIMS = """`Registry.claim(model)`: which family a model belongs to.

- first: the first model of a class, for each class that a family names; the way up the bases \
counts.
- again: another model of the same class.
- unknown: the first model of a class that no family knows."""

WORTH = """`surgery.find_heads` with the families and by graph alone (`Registry.of()`), with the \
same example, both with shapes remembered. Candidates are layers that only the graph shows: \
nothing says that they make classes. A detector's own forward depends on values, so by graph \
alone it is run for real; its family records the layers instead. Models are on `meta`, detectors \
are not."""

LOAD = """
import sys
from importlib.metadata import EntryPoint
from surgery.families.registry import Registry
registry = Registry.load([EntryPoint(*point, "surgery") for point in {points}])
if registry.failures or registry.conflicts:
    sys.exit(registry.explain())
"""
TASKS = {
    "nothing": "",
    "registry": "import surgery.families.registry",
    "families": LOAD,
    "installed": 'import importlib.metadata as m; m.entry_points(group="surgery")',
    "import torch": "import torch",
}
REPORT = """
import json, sys, time
spent = time.process_time()
roots = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([spent, len(sys.modules), sorted(roots & set(FRAMEWORKS))]))
"""

MODELS = (
    *("resnet50", "efficientnet_b0", "googlenet", "densenet121", "vit_b_16", "swin_t"),
    *("squeezenet1_1", "mvit_v2_s", "fcn_resnet50_aux", "lraspp_mobilenet_v3_large"),
    *("quantized_resnet18", "raft_small"),
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"),
    "retinanet_resnet50_fpn",
)


def points() -> dict[str, str]:
    """The entry points of the families that ship, by name, installed or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, str] = project["entry-points"]["surgery"]
    return found


def shipped() -> Registry:
    """The families that ship, whatever else is installed."""
    return Registry.load([EntryPoint(name, value, "surgery") for name, value in points().items()])


def process(code: str) -> tuple[float, int, list[str]]:
    """Seconds of the processor, modules, and frameworks among them, of a process of its own."""
    code = code.replace("{points}", repr([*points().items()]))
    report = REPORT.replace("FRAMEWORKS", repr(FRAMEWORKS))
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, modules, frameworks = json.loads(done.stdout.splitlines()[-1])
    return seconds, modules, frameworks


def imports(rounds: int) -> str:
    """What each import costs, as a table."""
    spent: dict[str, list[float]] = {name: [] for name in TASKS}
    modules: dict[str, int] = {}

    def start(name: str) -> Callable[[], None]:
        def run() -> None:
            seconds, modules[name], frameworks = process(TASKS[name])
            spent[name].append(seconds)
            if frameworks and name != "import torch":
                raise SystemExit(f"{name} imports {', '.join(frameworks)}")

        return run

    interleave({name: start(name) for name in TASKS}, rounds=rounds, warm_up=0, least=0.0)
    nothing = spent["nothing"]

    def beyond(name: str) -> Timing:
        pairs = zip(spent[name], nothing, strict=True)
        return Timing(tuple(mine - least for mine, least in pairs))

    whole = beyond("import torch")
    rows = [
        [
            name,
            duration(beyond(name).median),
            modules[name] - modules["nothing"],
            f"{100 * beyond(name).over(whole):.1f} %",
        ]
        for name in TASKS
        if name != "nothing"
    ]
    return markdown(["", "time", "modules", "of `import torch`"], rows)


def named(name: str) -> nn.Module:
    """A module of a class of this qualified name: a claim looks at nothing else."""
    module, _, cls = name.rpartition(".")
    made: nn.Module = type(cls, (nn.Module,), {"__module__": module})()
    return made


def claims(rounds: int) -> str:
    """How many models a registry recognises in a second, as a table."""
    registry = shipped()
    # A claim on a whole package is no class's name.
    named_ones = [family for family in registry.families if not family.marker]
    classes = [name for family in named_ones for name in family.classes]
    known = [named(name) for name in classes]
    unknown = [named(f"mine.Model{number}") for number in range(len(classes))]
    spent: dict[str, list[float]] = {"first": [], "again": [], "unknown": []}

    def ask(task: str, fresh: Registry, models: Sequence[nn.Module]) -> None:
        start = time.perf_counter()
        for model in models:
            fresh.claim(model)
        spent[task].append((time.perf_counter() - start) / len(models))

    for _ in range(rounds):
        fresh = Registry(registry.plugins)
        ask("first", fresh, known)
        ask("again", fresh, known)
        ask("unknown", fresh, unknown)
    rows = [
        [task, duration(Timing(tuple(taken)).median), f"{1 / Timing(tuple(taken)).median:,.0f}"]
        for task, taken in spent.items()
    ]
    families = f"{len(registry.families)} families with {len(classes)} classes"
    return f"{families}.\n\n{markdown(['', 'a claim', 'a second'], rows)}"


def open_up(model: Any) -> None:
    """Let a detector look at small images and keep every box."""
    if not isinstance(model, SSD):
        model.transform.min_size, model.transform.max_size = (96,), 128
    for part in (model, getattr(model, "roi_heads", model)):
        if hasattr(part, "score_thresh"):
            part.score_thresh = 0.0


def build(family: Family, name: str) -> nn.Module:
    with torch.device("cpu" if family.background else "meta"):
        model: nn.Module = resolve_name(family.catalog[name])()
    if family.background:
        open_up(model)
    return model.eval()


def compare(name: str, family: Family, registry: Registry, rounds: int) -> tuple[list[str], bool]:
    """One model with the families and without: a row, and whether the addresses are the same."""
    model = build(family, name)
    if (example := example_for(family, model)) is None:
        raise SystemExit(f"{name}: family {family.name!r} has no example")
    # What a family records in place of forward is knowledge as well.
    plain = dataclasses.replace(example, forward=None)

    def by_family() -> surgery.Heads:
        return surgery.find_heads(model, example, registry=registry)

    def by_graph() -> surgery.Heads:
        return surgery.find_heads(model, plain, registry=Registry.of())

    tasks = {"family": by_family, "graph": by_graph}
    # By graph a detector runs for real, which is long enough to be timed a few times only.
    found = interleave(tasks, rounds=3 if family.background else rounds, clock=time.thread_time)
    known, alone = by_family(), by_graph()
    same = {head.address for head in known} == {head.address for head in alone}
    sure = same and all(head.corroborated for head in alone)
    ratio = times(found["family"].over(found["graph"]))
    cost = [duration(found[task].median) for task in tasks]
    answer = ("the same" if sure else "the same, as candidates") if same else shown(alone)
    return [name, *cost, ratio, shown(known), answer], same


def worth(rounds: int) -> str:
    """With the families and without: time and answer, as a table."""
    registry = shipped()
    own = [f for f in registry.families if not isinstance(f.catalog, Catalog)]
    homes = {name: family for family in own for name in family.catalog}
    found = [compare(name, homes[name], registry, rounds) for name in MODELS]
    table = markdown(
        ["model", "family", "graph", "ratio", "heads by family", "by graph"],
        [row for row, _ in found],
    )
    same = sum(same for _, same in found)
    return f"{table}\n\nBoth name the same layers in {same} of {len(found)}."


def shown(heads: surgery.Heads) -> str:
    """The addresses, and which of them nothing but the graph shows."""
    words = [f"{head.address}{'' if head.corroborated else ' (candidate)'}" for head in heads]
    return ", ".join(words if len(words) <= 4 else [words[0], "...", words[-1]]) or "none"


def main(rounds: int = 12) -> None:
    torch.set_num_threads(THREADS)
    publish(
        "registry",
        "What the families cost, and what they are worth",
        WHAT,
        imports(rounds),
        CLAIMS,
        claims(10 * rounds),
        WORTH,
        worth(rounds // 2),
        machine("torchvision"),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
