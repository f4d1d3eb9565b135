"""The heads of transformers' other tasks: spans, choices, words, and what they are called.

Each class is a line of `results/roles.jsonl` as soon as it is done.

python -m benchmarks.roles                    # all that is missing, and the table
python -m benchmarks.roles MULTIPLE_CHOICE    # of one task
python -m benchmarks.roles BltForCausalLM     # one class, again
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from rich.progress import track
from surgery_plugins.transformers import FAMILY
from transformers.models.auto import modeling_auto

import surgery
from benchmarks.families import FailedError, require
from benchmarks.heads import CLASSES as DISTINCT
from benchmarks.rows import Row, add, attempt, lines
from benchmarks.timing import RESULTS, THREADS, machine, markdown, publish
from benchmarks.zoo import versions
from benchmarks.zoo_configs import attempts, silence
from surgery.errors import SurgeryError
from surgery.families.registry import Registry

KEPT = RESULTS / "roles.jsonl"
SECONDS = 60
LARGEST = 3e8
# What the layers of a task are called, and how many labels its models are built for. Those that
# make words are told from the embedding's weight.
TASKS: dict[str, tuple[str, int]] = {
    "QUESTION_ANSWERING": ("span", 2),
    "DOCUMENT_QUESTION_ANSWERING": ("span", 2),
    "MULTIPLE_CHOICE": ("choice", 2),
    "NEXT_SENTENCE_PREDICTION": ("main", 2),
    "VISUAL_QUESTION_ANSWERING": ("main", DISTINCT),
    "TABLE_QUESTION_ANSWERING": ("main", 2),
    "MASKED_LM": ("words", 2),
    "SEQ_TO_SEQ_CAUSAL_LM": ("words", 2),
    "CAUSAL_LM": ("words", 2),
}
# What stands behind a task and does another: its answers are classes, or words.
OTHERS = {"LxmertForQuestionAnswering": "main", "Blip2ForConditionalGeneration": "words"}
# What makes the words where ``get_output_embeddings()`` names the table that reads them.
MISNAMED = {"FSMTForConditionalGeneration": "model.decoder.output_projection"}

WHAT = """Each class behind the auto classes of these tasks is built small where it can be built \
so, and recorded on what the plugin says is its input. Its heads, the corroborated ones that \
operations take, must have the role of the task: `span` scores where an answer starts and ends, \
`choice` each choice, `main` makes classes. A layer that makes words must be the one that \
`get_output_embeddings()` names, if any, and be said to be tied exactly where its weight is that \
of an embedding; FSMT names the table that reads, and there it is the layer that makes its words. \
Where something else makes an output as well, it stays an uncorroborated candidate beside the \
head; these are counted. A class behind several tasks is counted at the first."""


def classes(task: str) -> Iterator[str]:
    table = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
    for found in table.values():
        yield from (found,) if isinstance(found, str) else found


def subjects() -> list[Row]:
    """A row to fill for every class."""
    first: dict[str, str] = {}
    for task in TASKS:
        for name in classes(task):
            first.setdefault(name, task)
    return [Row(name, task, versions("transformers")) for name, task in first.items()]


def kept() -> list[Row]:
    """What was measured with the versions that are installed, in the order of the tasks."""
    found = {row.name: row for row in lines(KEPT)}
    every = subjects()
    return [
        found[r.name] for r in every if r.name in found and found[r.name].versions == r.versions
    ]


def look(row: Row, registry: Registry) -> Row:
    """The smallest model of the class that can be recorded, and what its heads are called."""
    role, labels = TASKS[row.library]
    role = OTHERS.get(row.name, role)
    error: Exception | None = None
    for model in attempts(row.name, labels, LARGEST):
        try:
            heads = surgery.find_heads(model.eval(), registry=registry)
        except SurgeryError as raised:
            error = error or raised
            continue
        require(bool(heads), heads.ending)
        named = ", ".join(f"{head.address} ({head.role})" for head in heads)
        certain = [head for head in heads if head.corroborated]
        require(bool(certain), f"not corroborated: {named}")
        require({head.role for head in certain} == {"main" if role == "words" else role}, named)
        if role == "words":
            check_words(model, certain)
        found = tuple(head.address for head in certain)
        tied = any(head.tied_to for head in certain)
        right = {"tied": tied, "beside": len(certain) < len(heads)}
        return dataclasses.replace(row, status="done", heads=found, right=right)
    raise error or FailedError("nothing was built")


def check_words(model: Any, heads: Sequence[surgery.Head]) -> None:
    """Whether the layer that makes words is the library's, and tied where it is."""
    words = model.get_output_embeddings()
    if type(model).__name__ in MISNAMED:
        words = model.get_submodule(MISNAMED[type(model).__name__])
    weight = getattr(words, "weight", None)
    if weight is None:
        return
    own = {name for name, part in model.named_parameters(remove_duplicate=False) if part is weight}
    makers = [h for h in heads if own & {a for addresses in h.weights for a in addresses}]
    require(len(makers) == 1, f"{[h.address for h in heads]} make the words")
    # Of two vocabularies it is the decoder's that may be tied, and not the input's.
    tables = (part for part in model.modules() if isinstance(part, torch.nn.Embedding))
    tied = any(weight is table.weight for table in tables)
    require(bool(makers[0].tied_to) == tied, f"tied to {makers[0].tied_to}, in truth {tied}")


def report(rows: Sequence[Row]) -> tuple[str, str]:
    """The table, and what was not found."""
    cells = []
    every = Counter(row.library for row in subjects())
    for task in TASKS:
        own = [row for row in rows if row.library == task]
        counts = [sum(row.status == status for row in own) for status in ("done", "missing")]
        tied, beside = (sum(r.right.get(key, False) for r in own) for key in ("tied", "beside"))
        failed = len(own) - sum(counts)
        cells.append(
            [
                task.lower(),
                f"{len(own)} of {every[task]}",
                *map(str, (counts[0], tied, beside, counts[1], failed)),
            ]
        )
    headers = ["task", "examined", "named for what they are", "of them tied", "beside a candidate"]
    table = markdown([*headers, "other package missing", "failed"], cells)
    failed = [[r.name, r.library.lower(), reason(r)] for r in rows if r.status != "done"]
    return table, markdown(["class", "task", "reason"], failed) if failed else "Nothing failed."


def reason(row: Row) -> str:
    return row.reason.replace("|", "\\|")[:240]


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roles")
    parser.add_argument("names", nargs="*", help=f"classes, each again; or {', '.join(TASKS)}")
    parser.add_argument("--retry", action="store_true", help="what failed as well")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    silence()
    rows = subjects()
    done = {row.name for row in kept() if not (asked.retry and row.status == "failed")}
    done -= {*asked.names}
    wanted = {*asked.names} or {*TASKS}
    chosen = [r for r in rows if {r.library, r.name} & wanted and r.name not in done]
    for row in track(chosen, "transformers"):
        add(KEPT, attempt(row, partial(look, registry=Registry.of(FAMILY)), SECONDS))
    table, failed = report(kept())
    missing = len(rows) - len(kept())
    said = f"{missing} of {len(rows)} classes are still to be examined." if missing else ""
    publish(
        "roles",
        "The heads of transformers' other tasks",
        *(WHAT, table, said, "## Not named", failed, machine("transformers")),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
