"""Every model of timm, every classifier of transformers, and more: 7 classes, a run, and back.

Each model is a line of `results/zoo.jsonl` as soon as it is done, so that a run may end anywhere
and the next goes on from there. What failed is tried again with `--retry`; a line measured with
other versions of the libraries is measured again.

python -m benchmarks.zoo                          # all that is missing, and the table
python -m benchmarks.zoo --every 20 --largest 1e8 # a sample; larger models are on meta
python -m benchmarks.zoo resnet18 BertForTokenClassification  # these again, and no other
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import surgery
from benchmarks.families import FailedError, check_outputs, require
from benchmarks.heads import CLASSES as DISTINCT
from benchmarks.heads import last_linear, usual_names
from benchmarks.rows import Row, add, attempt, keep, lines
from benchmarks.timing import RESULTS, THREADS, machine, markdown, publish
from benchmarks.undone import real, there_and_back
from benchmarks.zoo_configs import silence
from benchmarks.zoo_libraries import LIBRARIES, Library, count, makes_classes
from surgery.errors import ArgumentError, NoHeadError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.plan import Outcome

CLASSES = 7
BILLION = 1e9
SECONDS = 900
KEPT = RESULTS / "zoo.jsonl"
# Why the graph alone leaves a head uncertain.
UNSAID = {
    "Nemotron3DiarizationForAudioFrameClassification": "it is found, and its configuration counts "
    "speakers (`num_speakers`), no classes or labels"
}
WAYS = {
    "graph": "surgery.find_heads, no plugin",
    "plugin": "surgery.find_heads, plugin",
    "linear": "the last nn.Linear in named_modules()",
    "names": "the names fc, classifier, head, score",
    "reset": "timm's reset_classifier(7), then 7 outputs",
}

WHAT = f"""Each model is built for {DISTINCT} classes, a number that nothing else in it has: its \
heads are the layers with {DISTINCT} outputs. It is given {CLASSES} classes (planned, applied and \
verified), run in eval mode on what the plugin says is its input, for transformers with the \
library's own loss on {CLASSES} labels, and undone. Then every parameter and buffer must be the \
same object with the same bytes and every fact (`num_classes`, `id2label`) what it was. timm's \
models are whole; those of transformers have few and narrow layers where their class can be built \
so. A model that timm builds without classes must be recognised: `find_heads` finds none, \
`replace_head` refuses, and with `attach=True` gives it a head, which is run and taken back (with \
`pool="mean"` where the model leaves open how its patches become one vector). The \
other libraries have no plugin here: the graph alone finds their heads, which nothing needs to \
corroborate. On `meta` (above the `--largest` of the run, which is a billion parameters where \
nothing is said, or where a class could be built no smaller) nothing is computed: there are no \
bytes to compare and no loss, and the checks of the operation prove the shapes."""


def versions(library: str) -> str:
    packages = {"torch": "torch", library: LIBRARIES[library].package}
    return ", ".join(f"{name} {metadata.version(own)}" for name, own in packages.items())


def run(model: nn.Module, outcome: Outcome, example: Example) -> None:
    """A forward pass of the changed model, and its own loss on as many labels."""
    inputs = real(model, example)
    # What needs values was recorded for real, and there is nothing else to run it on.
    place = next(model.parameters()).device
    if place.type == "meta":
        return  # the checks of the outcome ran on meta, in eval and in train mode
    with torch.no_grad():
        answer = inputs.call(model.eval())
    check_outputs(answer, "eval", outcome)
    if "labels" not in inspect.signature(model.forward).parameters or not hasattr(model, "config"):
        return
    logits = answer["logits"]
    labels = torch.full(logits.shape[:-1], CLASSES - 1)
    if "AudioFrame" in type(model).__name__:  # their loss takes them as ones and zeros
        labels = nn.functional.one_hot(labels, CLASSES)
    with torch.no_grad():
        loss = model(*inputs.args, **inputs.kwargs, labels=labels)["loss"]
    require(bool(torch.isfinite(loss)), f"the loss on {CLASSES} labels is {loss}")


def resets(name: str, model: nn.Module, example: Example) -> bool:
    """Whether timm's own way gives 7 outputs, on meta."""
    with torch.device("meta"):
        other = copy.deepcopy(model).to("meta").eval()
        try:
            other.reset_classifier(CLASSES)
            inputs = real(other, example)
            meta = replace_tensors(inputs.args, lambda tensor: tensor.to("meta"))
            made = [tensor for _, tensor in tensors(other(*meta))]
        except Exception:  # of any model, and then it does not
            return False
    return bool(made) and all(tensor.shape[1] == CLASSES for tensor in made)


def examine(row: Row, largest: float) -> Row:
    """One model, from its construction to the comparison."""
    known = LIBRARIES[row.library]
    model, example = known.build(row.name, largest)
    model.eval()
    meta = next(model.parameters()).is_meta
    row = dataclasses.replace(row, parameters=count(model), place="meta" if meta else "real")
    wanted = makes_classes(row.name, model)
    heads = surgery.find_heads(model, example, registry=known.registry)
    found = {head.address for head in heads}
    row = dataclasses.replace(row, heads=tuple(sorted(found)))
    alone = surgery.find_heads(model, example, registry=Registry.of())
    right = {"plugin": found == wanted} if known.registry.families else {}
    certain = {head.address for head in alone if head.corroborated or not right}
    right["graph"] = certain == wanted
    right |= {"linear": last_linear(model) == wanted, "names": usual_names(model) == wanted}
    if row.library == "timm":
        right["reset"] = resets(row.name, model, example)
    row = dataclasses.replace(row, right=right)
    if not heads:
        require(not wanted, f"no head was found, and {sorted(wanted)} make the classes")
        row = dataclasses.replace(row, status="refused", reason=refusal(model, example, known))
        try:
            replace_and_undo(model, example, known, attach=True)
        except ArgumentError as error:
            if error.where != "pool":
                raise
            replace_and_undo(model, example, known, attach=True, pool="mean")
        return dataclasses.replace(row, status="attached")
    require(found == wanted, f"heads {sorted(found)}, where {sorted(wanted)} make the classes")
    replace_and_undo(model, example, known)
    return dataclasses.replace(row, status="done")


def replace_and_undo(model: nn.Module, example: Example, known: Library, **options: Any) -> None:
    """Seven classes, a forward pass, and what was there before."""
    replace = partial(surgery.replace_head, model, CLASSES)
    there_and_back(
        model,
        lambda: replace(example=example, registry=known.registry, **options),
        lambda outcome: run(outcome.model, outcome, example),
    )


def refusal(model: nn.Module, example: Example, known: Library) -> str:
    try:
        surgery.replace_head(model, CLASSES, example=example, registry=known.registry)
    except NoHeadError as error:
        return str(error).splitlines()[0]
    raise FailedError("heads were replaced where there are none")


def subjects() -> dict[str, str]:
    """The library of every model, by name."""
    return {name: key for key, library in LIBRARIES.items() for name in library.names()}


def kept() -> dict[str, Row]:
    """What was measured before, with the versions that are installed."""
    return {row.name: row for row in lines(KEPT) if row.versions == versions(row.library)}


def examined(
    chosen: Sequence[str], known: dict[str, Row], largest: float, seconds: float
) -> Iterator[Row]:
    libraries = subjects()
    columns = (TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(chosen))
        for name in chosen:
            progress.update(task, description=name)
            if name not in known:
                row = Row(name, libraries[name], versions(libraries[name]))
                row = attempt(row, partial(examine, largest=largest), seconds)
                add(KEPT, row)
                yield row
            progress.advance(task)


def covered(rows: Sequence[Row], every: dict[str, str]) -> str:
    """How many models of each library, and what became of them."""
    cells = []
    for library in LIBRARIES:
        own = [row for row in rows if row.library == library]
        status = Counter(row.status for row in own)
        total = sum(each == library for each in every.values())
        places = Counter(row.place for row in own if row.status == "done")
        counts = [
            *(status["done"], places["meta"], status["attached"], status["refused"]),
            *(status["missing"], status["failed"]),
        ]
        cells.append([library, f"{len(own)} of {total}", *map(str, counts)])
    headers = [
        "library",
        "examined",
        "there and back",
        "of them on meta",
        "no classifier, one attached",
        "no classifier",
        "other package missing",
        "failed",
    ]
    return markdown(headers, cells)


def compared(rows: Sequence[Row]) -> str:
    """How often each way names exactly the layers that make the classes."""
    cells = []
    for way, words in WAYS.items():
        counts = [words]
        for library in LIBRARIES:
            asked = [
                row.right[way]
                for row in rows
                if row.library == library and way in row.right and row.heads
            ]
            counts.append(f"{sum(asked)} of {len(asked)}" if asked else "")
        cells.append(counts)
    return markdown(["way", *LIBRARIES], cells)


def uncertain(rows: Sequence[Row]) -> str:
    """The models whose heads the graph alone does not name for certain, and why."""
    missed = [row for row in rows if row.status == "done" and not row.right["graph"]]
    if not missed:
        return "Without the plugins no other head is named, and none is left uncertain."
    said = (f"{row.name} ({UNSAID.get(row.name, 'no reason is known')})" for row in missed)
    return f"Without the plugins these are not named for certain: {'; '.join(said)}."


def failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.status in ("failed", "refused", "missing")]
    if not failed:
        return "Nothing failed."
    cells = [[row.name, row.library, row.reason.replace("|", "\\|")[:240]] for row in failed]
    return markdown(["model", "library", "reason"], cells)


def unreal(row: Row, largest: float) -> bool:
    """Whether a model was only on meta, in a run that made less for real."""
    return row.place == "meta" and row.parameters <= largest


def report(rows: Sequence[Row]) -> None:
    every = subjects()
    rows = [row for row in rows if row.name in every]
    missing = len(every) - len(rows)
    said = (
        f"**This covers {len(rows)} of {len(every)} models**; {missing} are still to be examined "
        "(`python -m benchmarks.zoo` goes on). Each is a line of `zoo.jsonl`."
        if missing
        else "This covers every model. Each is a line of `zoo.jsonl`."
    )
    if small := sum(unreal(row, BILLION) for row in rows):
        said += (
            f" {small} models of at most a billion parameters have only been on `meta`, in a run "
            "with a smaller `--largest`; the next one makes them for real."
        )
    minutes = sum(row.seconds for row in rows) / 60
    spent = f"{minutes:.0f} minutes in all. {machine('timm', 'transformers')}"
    baselines = (
        "How often each way names exactly the layers that make the classes, of the models that "
        "could be built and recorded. All are given the same example, the plugin's; without the "
        "plugin a head counts where an attribute or configuration says its number as well."
    )
    publish(
        "zoo",
        "The zoo, there and back",
        *(WHAT, said, covered(rows, every), baselines, compared(rows), uncertain(rows)),
        *("## Failures", failures(rows), spent),
    )


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo")
    parser.add_argument("names", nargs="*", help="these models only, and each again")
    parser.add_argument("--every", type=int, default=1, help="every Nth model")
    parser.add_argument("--library", choices=[*LIBRARIES], help="of one library")
    parser.add_argument("--largest", type=float, default=BILLION, help="parameters; else meta")
    parser.add_argument("--retry", action="store_true", help="what failed as well")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="of processor time for a model at the most"
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    silence()
    known = kept()
    every = subjects()
    chosen = [n for n, library in every.items() if asked.library in (None, library)]
    chosen = asked.names or chosen[:: asked.every]
    again = {*asked.names}
    again |= {n for n in chosen if asked.retry and n in known and known[n].status == "failed"}
    again |= {n for n in chosen if n in known and unreal(known[n], asked.largest)}
    # An older row stays until there is a new one, which is further down.
    keep(KEPT, [*known.values()])
    left = {name: row for name, row in known.items() if name not in again}
    rows = list(examined(chosen, left, asked.largest, asked.seconds))
    known |= {row.name: row for row in rows}
    done = sorted(known.values(), key=lambda row: [*every].index(row.name))
    keep(KEPT, done)
    report(done)
    return int(any(row.status == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
