"""Every model of torchvision and efficientnet-pytorch: 7 classes, one run, and back.

Each row is kept in `build/` as it is done: after an interruption the next run goes on from there,
unless the code or a version changed.

python -m benchmarks.families               # all, and the table
python -m benchmarks.families vgg11 raft    # those whose name holds one of these, and no table
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import json
import resource
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from torchvision.models import list_models

import surgery
from benchmarks.registry import ROOT, open_up, shipped
from benchmarks.timing import THREADS, duration, machine, markdown, publish
from surgery import tree
from surgery.errors import NoHeadError
from surgery.families import Catalog
from surgery.families.applied import example_for
from surgery.families.registry import Registry
from surgery.graph import remembered
from surgery.graph.example import Example
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.plan import Outcome
from surgery.operations.verify import ModelState, verify
from tests.operations.state import content, differences, state_of

PACKAGES = ("torchvision", "efficientnet-pytorch")
CLASSES = 7
# Larger models are made on meta, where they have shapes and identities but no bytes.
LARGEST = 150e6
# What a model is run with is cut down to this, except where a family says its size is fixed.
SIDE = 64
WHOLE = {"vision_transformer", "maxvit", "mvit", "inception", "quantizable_inception", "s3d"}
DETECTORS = {"rcnn", "dense_detection", "ssd"}
# Running a detector computes its anchors anew, every time.
RECOMPUTED = ".cell_anchors"
KEPT = ROOT / "build" / "families.jsonl"

WHAT = f"""Each model is built at random, its heads are found, replaced by {CLASSES} classes with \
every check, run, and undone; then it is compared with what it was: every object it consists of, \
by identity, every fact, and of every parameter and buffer the address, the version and the bytes. \
Models of more than {LARGEST / 1e6:.0f} million parameters are on `meta` (there are no bytes to \
compare, and the run proves shapes). The example is the family's.

- find: `surgery.find_heads(model)`, with nothing remembered from another model.
- replace: `surgery.replace_head(model, {CLASSES})` after that, planned, applied and verified.
- verify: its verification, once more.
- undo: `outcome.undo()`.
- run: eval mode, two samples of the size given. Where a head answers in train mode only, train \
mode as well, in a copy. Detectors run their own forward on two images, with every score allowed: \
so many boxes came out, all with labels below {CLASSES}.
- compared: of how many tensors the bytes. The anchors of a detector are left out: every run makes \
them anew.

Times are processor time of the one thread, of one call each.

*Quantised* is the model that torchvision builds with `quantize=True`; its packed weights are \
compared too. *Refused*: nothing in the model makes classes, which `find_heads` and \
`replace_head` both say."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Subject:
    """A model to examine, and how it is built."""

    name: str
    family: str
    target: str
    quantised: bool = False

    def build(self) -> nn.Module:
        """For real or, where it is large, on meta."""
        make = resolve_name(self.target)
        options = {"quantize": True} if self.quantised else {}
        try:
            with torch.device("meta"):
                size = 0 if self.quantised else count(make())
        except NotImplementedError:  # a constructor that computes on its weights
            size = 0
        with torch.device("meta" if size > LARGEST else "cpu"):
            model: nn.Module = make(**options)
        model = (model.to("meta") if count(model) > LARGEST else model).eval()
        if self.family in DETECTORS:
            open_up(model)
            detect(model)  # the first run sets what depends on the size of the images
        return model


@dataclass(frozen=True)
class Row:
    """What was found about one model. Times in seconds, memory in bytes."""

    name: str
    family: str
    parameters: int = 0
    place: str = ""
    heads: tuple[str, ...] = ()
    find: float = 0.0
    replace: float = 0.0
    verify: float = 0.0
    undo: float = 0.0
    run: str = ""
    compared: str = ""
    failure: str = ""
    refused: bool = False
    wall: float = 0.0
    peak: float = 0.0


class FailedError(Exception):
    """Something that had to hold did not."""


def require(held: bool, words: str) -> None:
    if not held:
        raise FailedError(words)


def count(model: nn.Module) -> int:
    """Its parameters, and the weights that quantised layers keep packed."""
    plain = sum(parameter.numel() for parameter in model.parameters())
    return plain + sum(int(layer.weight().numel()) for _, layer in quantised_layers(model))


def quantised_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(a, layer) for a, layer in tree.walk(model) if callable(getattr(layer, "weight", None))]


def subjects(registry: Registry) -> list[Subject]:
    """Everything in the catalogs, and the quantizable models once more, quantised."""
    found = [
        Subject(name, family.name, target)
        for family in registry.families
        if not isinstance(family.catalog, Catalog)  # a library of thousands: zoo.py
        for name, target in family.catalog.items()
    ]
    missing = set(list_models()) - {subject.name for subject in found}
    require(not missing, f"in no catalog: {sorted(missing)}")
    quantised = [s for s in found if s.family.startswith("quantizable_")]
    return [*found, *(dataclasses.replace(s, quantised=True) for s in quantised)]


def timed(task: Callable[[], _Answer]) -> tuple[_Answer, float]:
    start = time.thread_time()
    answer = task()
    return answer, time.thread_time() - start


def example_of(subject: Subject, model: nn.Module, registry: Registry) -> Example:
    family = registry.claim(model)
    if family is None or family.name != subject.family:
        raise FailedError(f"claimed by {family}")
    if (example := example_for(family, model)) is None:
        raise FailedError("the family has no example")
    return example


def inputs(subject: Subject, example: Example) -> tuple[Any, ...]:
    """Noise in place of the example's zeros; smaller, where the model takes any size."""

    def smaller(tensor: torch.Tensor) -> torch.Tensor:
        *batch, height, width = tensor.shape
        whole = tensor.is_meta or subject.family in WHOLE
        sizes = (height, width) if whole else (min(SIDE, height), min(SIDE, width))
        return torch.rand(*batch, *sizes, device=tensor.device)

    args: tuple[Any, ...] = replace_tensors(example.args, smaller)
    return args


def run(subject: Subject, model: nn.Module, outcome: Outcome, example: Example) -> str:
    """A forward pass of the changed model; what it was run with, in words."""
    if subject.family in DETECTORS:
        boxes, labels = detect(model)
        require(labels[-1] < CLASSES, f"{labels}: labels of {CLASSES} classes")
        return f"{boxes} boxes"
    args = inputs(subject, example)
    with torch.no_grad():
        check_outputs(model(*args), "eval", outcome)
    words = "x".join(map(str, args[0].shape))
    trained = {c.path for c in outcome.plan.outputs if c.mode == "train" and c.class_axes}
    evaluated = {c.path for c in outcome.plan.outputs if c.mode == "eval" and c.class_axes}
    if len(trained) > len(evaluated):
        with torch.no_grad():
            check_outputs(copy.deepcopy(model).train()(*args), "train", outcome)
        words += ", and train"
    return words


def check_outputs(value: object, mode: str, outcome: Outcome) -> None:
    """Every class output has the new number of classes, and finite numbers."""
    made = dict(tensors(value))
    expected = [c for c in outcome.plan.outputs if c.mode == mode and c.class_axes]
    require(bool(expected), f"no class output was planned in {mode} mode")
    for change in expected:
        require(change.path in made, f"{change.path} ({mode}) is not among {', '.join(made)}")
        output = made[change.path]
        for axis in change.class_axes:
            shape = tuple(output.shape)
            require(shape[axis] == CLASSES, f"{change.path} ({mode}) has the shape {shape}")
        real = output.is_meta or bool(output.isfinite().all())
        require(real, f"{change.path} ({mode}) is not finite")


def detect(model: nn.Module) -> tuple[int, range]:
    """A detector's own forward on two images: how many boxes, and between which labels."""
    images = [torch.rand(3, 96, 96), torch.rand(3, 80, 112)]
    with torch.no_grad():
        found = model(images)
    labels = torch.cat([each["labels"] for each in found])
    boxes = torch.cat([each["boxes"] for each in found])
    require(len(labels) > 0, "no box was found")
    low, high = int(labels.min()), int(labels.max())
    require(bool(boxes.isfinite().all()), "boxes that are not finite")
    return len(labels), range(low, high + 1)


def packed(model: nn.Module) -> dict[str, object]:
    """The weights of quantised layers, which are no tensors of the model."""
    found: dict[str, object] = {}
    for address, layer in quantised_layers(model):
        weight, bias = layer.weight(), layer.bias()
        steps = weight.q_per_channel_scales() if "channel" in str(weight.qscheme()) else None
        exact = [weight.int_repr(), bias, steps]
        found[f"packed {address}"] = [t if t is None else content(t) for t in exact]
    return found


def everything(model: nn.Module) -> dict[str, object]:
    return {**state_of(model, process=False), **packed(model)}


def examine(subject: Subject, registry: Registry) -> Row:
    """One model, from its construction to the comparison.

    Raises:
        FailedError: something did not hold.
        SurgeryError: an operation did not go through.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constructors
        model = subject.build()
        example = example_of(subject, model, registry)
    place = "meta" if next(iter(tree.index(model).tensors.values())).tensor.is_meta else "real"
    row = Row(label(subject), subject.family, parameters=count(model), place=place)
    before = everything(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = operate(subject, model, example, row, registry)
    # torch deprecates the quantisation that its own models are built with.
    said = {str(w.message) for w in caught if "quantiz" not in str(w.message)}
    require(not said, f"warned: {'; '.join(sorted(said))}")
    after = everything(model)
    changed = [d for d in differences(before, after) if RECOMPUTED not in d.partition(": ")[0]]
    require(not changed, f"{len(changed)} things are not what they were: {'; '.join(changed[:3])}")
    held = [key for key in before if key.endswith(": bytes")]
    words = "identities" if place == "meta" else f"bytes of {len(held)}"
    if any(key.startswith("packed ") for key in before):
        words += f" and {sum(key.startswith('packed ') for key in before)} packed"
    return dataclasses.replace(row, compared=words)


def operate(
    subject: Subject, model: nn.Module, example: Example, row: Row, registry: Registry
) -> Row:
    """Find, replace, verify again, run, undo."""
    remembered.forget()
    heads, find = timed(lambda: surgery.find_heads(model, registry=registry))
    found = dataclasses.replace(row, heads=tuple(head.address for head in heads), find=find)
    if not heads:
        return dataclasses.replace(found, refused=True, run=refused(model, heads, registry))
    require(all(head.corroborated for head in heads), "a head that only the graph shows")
    state = ModelState.of(model)
    outcome, replace = timed(lambda: surgery.replace_head(model, CLASSES, registry=registry))
    checks, again = timed(lambda: verify(model, outcome.plan, state))
    wrong = [str(check) for check in (*outcome.checks, *checks) if not check.passed]
    require(not wrong, "; ".join(wrong))
    words = run(subject, model, outcome, example)
    back, undo = timed(outcome.undo)
    require(back is model, "undo gave another model")
    return dataclasses.replace(found, replace=replace, verify=again, undo=undo, run=words)


def refused(model: nn.Module, heads: surgery.Heads, registry: Registry) -> str:
    """What is said of a model without classes, which has to be clear."""
    require(model.__class__.__module__.endswith("optical_flow.raft"), f"no head: {heads.ending}")
    try:
        surgery.replace_head(model, CLASSES, registry=registry)
    except NoHeadError as error:
        said = str(error)
        require("optical_flow" in said and bool(error.fix), f"refused without a reason: {said}")
        return f"refused: {said.splitlines()[0]}"
    raise FailedError("heads were replaced where there are none")


def attempt(subject: Subject, registry: Registry) -> Row:
    """As ``examine``, with whatever goes wrong in the row, and what it took."""
    start = time.perf_counter()
    try:
        row = examine(subject, registry)
    except Exception as error:  # of any model, and kept for the table
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}".splitlines()
        row = Row(label(subject), subject.family, failure=" ".join(words))
    gc.collect()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return dataclasses.replace(row, wall=time.perf_counter() - start, peak=peak)


def label(subject: Subject) -> str:
    return f"{subject.name}, quantised" if subject.quantised else subject.name


def circumstances() -> str:
    """What the rows depend on: the machine, the versions, and every line of the project's code."""
    digest = hashlib.sha256()
    for folder in ("surgery", "plugins", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{machine(*PACKAGES)} {digest.hexdigest()}"


def kept(stamp: str) -> dict[str, Row]:
    """The rows of a run that was interrupted, if they were measured in the same circumstances."""
    if not KEPT.exists():
        return {}
    first, *lines = KEPT.read_text("utf-8").splitlines()
    if json.loads(first) != stamp:
        return {}
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.name: row for row in rows if not row.failure}


def examined(chosen: Sequence[Subject], registry: Registry, keep: bool) -> Iterator[Row]:
    """A row for each, one model in memory at a time."""
    known = kept(stamp := circumstances()) if keep else {}
    if keep:
        KEPT.parent.mkdir(exist_ok=True)
        lines = [stamp, *(dataclasses.asdict(row) for row in known.values())]
        KEPT.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    columns = (TextColumn("{task.description:38}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(chosen))
        for subject in chosen:
            progress.update(task, description=label(subject))
            row = known.get(label(subject)) or attempt(subject, registry)
            if keep and row.name not in known:
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            progress.advance(task)
            yield row


def cells(row: Row) -> list[str]:
    few = len(row.heads) <= 4
    heads = ", ".join(row.heads) if few else f"{row.heads[0]} ... {row.heads[-1]}"
    if row.failure:
        return [row.name, *[""] * 9, row.failure.replace("|", "\\|")[:200]]
    spent = (row.find, row.replace, row.verify, row.undo)
    times = [duration(seconds) if seconds else "" for seconds in spent]
    size = f"{row.parameters / 1e6:,.1f} M"
    return [row.name, size, row.place, heads, *times, row.run, row.compared, ""]


def table(rows: Sequence[Row]) -> str:
    headers = ["model", "parameters", "on", "heads", "find", "replace", "verify", "undo"]
    return markdown([*headers, "run", "compared", "failure"], [cells(row) for row in rows])


def totals(rows: Sequence[Row]) -> str:
    """The counts, and what an operation costs in the middle and at most."""
    replaced = [row for row in rows if row.replace and not row.failure]
    names = {row.name for row in rows}
    lines = [
        f"{len(rows)} rows, {len(set(list_models()) & names)} of them the models of torchvision as "
        f"`list_models()` gives them: {len(replaced)} replaced, run, undone and found unchanged, "
        f"{sum(row.refused for row in rows)} refused, "
        f"**{sum(bool(row.failure) for row in rows)} failed**."
    ]
    if replaced:
        costs = []
        for column in ("find", "replace", "verify", "undo"):
            most = max(replaced, key=lambda row: getattr(row, column))
            middle = statistics.median(getattr(row, column) for row in replaced)
            highest = f"{duration(getattr(most, column))} ({most.name})"
            costs.append([column, duration(middle), highest])
        lines.append(markdown(["", "median", "most"], costs))
    return "\n\n".join(lines)


def main(wanted: Sequence[str] = ()) -> int:
    torch.set_num_threads(THREADS)
    registry = shipped()
    every = subjects(registry)
    if wanted:
        every = [s for s in every if any(part in label(s) for part in wanted)]
    rows = list(examined(every, registry, keep=not wanted))
    if wanted:
        print(table(rows), totals(rows), sep="\n\n")
    else:
        wall, peak = sum(row.wall for row in rows) / 60, max(row.peak for row in rows) / 1e9
        spent = f"All of it took {wall:.0f} minutes and at most {peak:.1f} GB of memory."
        notes = f"{spent} {machine(*PACKAGES)}"
        publish("families", "Every model, there and back", WHAT, totals(rows), table(rows), notes)
        KEPT.unlink()
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
