"""Models of many libraries that nobody wrote a plugin for: do 7 classes make the library's own 7?

Each model is a line of `results/wild.jsonl` as soon as it is done, so that a run may end anywhere
and the next goes on from there; a line measured with other versions is measured again. A library
that is not installed is a row "missing" and no failure: the table says how to install it.

python -m benchmarks.wild                    # all that is missing, and the table
python -m benchmarks.wild monai tsai:FCN     # these libraries and models again
python -m benchmarks.wild --retry            # what did not come out like its twin as well
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial

import torch
from rich.progress import track
from torch import nn

import surgery
from benchmarks.families import FailedError, require
from benchmarks.heads import last_linear, usual_names
from benchmarks.rows import Row, add, attempt, keep, lines
from benchmarks.timing import RESULTS, THREADS, machine, markdown, publish
from benchmarks.undone import snapshot, there_and_back
from benchmarks.wild_images import IMAGES
from benchmarks.wild_models import Subject
from benchmarks.wild_sequences import SEQUENCES
from surgery.errors import AmbiguousHeadError, SurgeryError, UndoError, VerificationError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.graph.structure import tensors
from surgery.operations.plan import Outcome

BEFORE, AFTER = 23, 7
KEPT = RESULTS / "wild.jsonl"
SECONDS = 120
LIBRARIES = IMAGES | SEQUENCES
ALONE = Registry.of()

Shape = tuple[int, ...]

WHAT = f"""Each model is made by its library for {BEFORE} classes and given {AFTER} by \
`replace_head`, with no plugin. The measure is a twin that the library makes for {AFTER}: every \
parameter and buffer must have the twin's shape, every output in eval mode too, and undoing must \
give back the same objects with the same bytes. Where several layers could be the head and nothing \
decides (a box beside a class, an actor beside a critic), `replace_head` asks which: then those \
among the found heads are named that the twin says, as a user who knows the model would, and it \
is counted apart. What the constructor changes and a new head does not (the embedding of input \
words where the classes are words, the width of a layer before the head, heads whose answers \
forward leaves out) is a pattern in the data of the benchmark with its reason, and counted apart \
too; its outputs must still be the twin's. A model that is refused must be left as it was. Beside \
it two guesses: a guess is right where it names exactly the layers whose shapes differ between \
the twins. Large models are on `meta`, where there are no bytes to compare."""


def subjects() -> dict[str, tuple[str, Subject]]:
    """Every model with its library, by both names."""
    return {
        f"{key}:{name}": (key, subject)
        for key, library in LIBRARIES.items()
        for name, subject in library.subjects.items()
    }


def versions(library: str) -> str:
    return f"torch {torch.__version__.partition('+')[0]}, {LIBRARIES[library].version}"


def made(subject: Subject, classes: int) -> nn.Module:
    torch.manual_seed(0)
    with torch.device("meta" if subject.meta else "cpu"):
        return subject.make(classes).eval()


def shapes(model: nn.Module) -> dict[str, Shape]:
    both = (*model.named_parameters(), *model.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in both}


def outputs(model: nn.Module, example: Example) -> dict[str, Shape]:
    with torch.no_grad():
        answer = example.call(model.eval())
    return {path: tuple(tensor.shape) for path, tensor in tensors(answer)}


@dataclass(frozen=True)
class Twins:
    """Shapes before and as they should be, what the smaller model makes, and what is excused."""

    before: dict[str, Shape]
    wanted: dict[str, Shape]
    answers: dict[str, Shape]
    apart: tuple[str, ...]

    def excused(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.apart)

    def fits(self, name: str, own: Shape | None) -> bool:
        """Whether a tensor is the twin's, or excused, or reads what is excused."""
        before, wanted = self.before.get(name), self.wanted.get(name)
        if own == wanted or not self.apart or own is None or before is None or wanted is None:
            return own == wanted
        if len(own) != len(wanted):
            return False
        mixed = all(size in pair for size, *pair in zip(own, before, wanted, strict=True))
        return mixed and (own != before or self.excused(name))


def compare(outcome: Outcome, twins: Twins, example: Example) -> None:
    """Whether a model has the shapes of its twin, and makes what that makes."""
    own = shapes(outcome.model)
    every = own.keys() | twins.wanted
    wrong = sorted(name for name in every if not twins.fits(name, own.get(name)))
    listed = ", ".join(f"{name} {own.get(name)}, not {twins.wanted.get(name)}" for name in wrong)
    require(not wrong, f"{len(wrong)} tensors are not the twin's: {listed}")
    found = outputs(outcome.model, example)
    require(found == twins.answers, f"outputs {found}, where the twin has {twins.answers}")


def layers(model: nn.Module, names: set[str]) -> set[str]:
    """The addresses of the layers that hold these tensors."""
    owners = {name.rpartition(".")[0] for name in names}
    return {owner.partition(".parametrizations.")[0] for owner in owners}


def look(row: Row, subject: Subject) -> Row:
    """One model beside its twin."""
    model, twin = made(subject, BEFORE), made(subject, AFTER)
    with torch.device("meta" if subject.meta else "cpu"):
        example = Example.of(subject.inputs())
    outputs(made(subject, BEFORE), example)
    answers = outputs(twin, example)
    twins = Twins(shapes(model), shapes(twin), answers, subject.apart)
    differ = {name for name, own in twins.before.items() if own != twins.wanted.get(name)}
    require(bool(differ), "its constructor makes nothing of the number of classes")
    apart = {name for name in differ if twins.excused(name)}
    require(bool(apart) == bool(subject.apart), f"nothing is called {subject.apart}")
    truth = layers(model, differ - apart)
    right = {"linear": last_linear(model) == truth, "names": usual_names(model) == truth}
    row = dataclasses.replace(
        row,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        place="meta" if subject.meta else "real",
        right=right | {"apart": bool(apart)},
        reason=subject.why,
    )
    check = partial(compare, twins=twins, example=example)
    return operated(row, model, example, check, truth)


def operated(
    row: Row, model: nn.Module, example: Example, check: Callable[[Outcome], None], truth: set[str]
) -> Row:
    """What becomes of it: done, done with its heads named, refused, or wrong."""
    untouched = snapshot(model)
    replace = partial(surgery.replace_head, model, AFTER, example=example, registry=ALONE)
    try:
        try:
            there_and_back(model, replace, check)
        except AmbiguousHeadError:
            found = surgery.find_heads(model, example, registry=ALONE)
            row = dataclasses.replace(row, right=row.right | {"asked": True})
            named = [head.address for head in found if owned(head) & truth]
            there_and_back(model, partial(replace, heads=named), check)
    except (FailedError, VerificationError, UndoError) as error:
        return dataclasses.replace(row, status="wrong", reason=said(error))
    except SurgeryError as error:
        same = snapshot(model) == untouched
        return dataclasses.replace(row, status="refused" if same else "wrong", reason=said(error))
    except TimeoutError:
        raise
    except Exception as error:  # of any kind: nothing else may come out of an operation
        return dataclasses.replace(row, status="wrong", reason=said(error))
    return dataclasses.replace(row, status="done")


def owned(head: surgery.Head) -> set[str]:
    """The layers of a head's tensors, and itself."""
    held = (address for addresses in head.weights for address in addresses)
    return {head.address, *(address.rpartition(".")[0] for address in held)}


def said(error: Exception) -> str:
    words = [line.strip() for line in str(error).splitlines()]
    return f"{type(error).__name__}: {' '.join(words)}"[:400]


def kept() -> dict[str, Row]:
    """What was measured before with the versions that are installed, in the order of the data.

    Of a library that is not here, what was measured where it is.
    """
    found = {row.name: row for row in lines(KEPT)}
    return {
        name: found[name]
        for name, (library, _) in subjects().items()
        if name in found
        and (found[name].versions == versions(library) or not LIBRARIES[library].installed)
    }


def counted(rows: Sequence[Row]) -> list[int]:
    """The numbers of a line of the table."""
    status = Counter(row.status for row in rows)
    tried = [row for row in rows if row.status in ("done", "refused", "wrong")]
    done = [row for row in rows if row.status == "done"]
    asked, apart = (sum(row.right.get(key, False) for row in done) for key in ("asked", "apart"))
    guesses = [sum(row.right[way] for row in tried) for way in ("linear", "names")]
    return [
        *(len(tried), len(done), asked, apart, status["refused"], status["wrong"], *guesses),
        *(status["missing"], status["failed"]),
    ]


def table(rows: Sequence[Row]) -> str:
    cells: list[list[object]] = []
    for library in LIBRARIES:
        own = [row for row in rows if row.library == library]
        cells.append([library, *counted(own)])
    cells.append(["all", *counted(rows)])
    headers = [
        *("library", "tried", "like the twin", "of them with heads named"),
        *("of them but for a reason below", "refused", "wrong", "the last nn.Linear is right"),
        *("fc, classifier, head or score is right", "missing", "the library fails"),
    ]
    return markdown(headers, cells)


def reasons(rows: Sequence[Row]) -> str:
    """What is not plainly like its twin, and why."""
    told = [row for row in rows if row.status != "missing" and row.reason]
    if not told:
        return "There is nothing to tell."
    words = {"done": "like the twin, but"}
    cells = [
        [row.name, words.get(row.status, row.status), row.reason.replace("|", "\\|")[:300]]
        for row in told
    ]
    return markdown(["model", "outcome", "reason"], cells)


def installing(rows: Sequence[Row]) -> str:
    """How each library is installed, with the version that was measured."""
    measured_with = {row.library: row.versions.rpartition(" ")[2] for row in rows}
    cells = []
    for key, library in LIBRARIES.items():
        measured = measured_with.get(key, "missing")
        cells.append([key, measured, f"`pip install --no-deps {' '.join(library.install)}`"])
    return markdown(["library", "version", "to install it"], cells)


def report(rows: Sequence[Row]) -> None:
    every = subjects()
    left = len(every) - len(rows)
    libraries = len({row.library for row in rows if row.status != "missing"})
    covered = (
        f"This covers {len(rows)} models; {libraries} of {len(LIBRARIES)} libraries were "
        "installed. Each is a line of `wild.jsonl`."
    )
    if left:
        covered += f" {left} of {len(every)} models are still to be examined."
    publish(
        "wild",
        "Libraries without a plugin, beside a twin",
        *(WHAT, covered, table(rows), "## Reasons", reasons(rows)),
        *("## Installing", installing(rows), machine()),
    )


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wild")
    parser.add_argument("names", nargs="*", help="these libraries or models only, and each again")
    parser.add_argument("--retry", action="store_true", help="what is not like its twin as well")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of processor time a model")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    every, known = subjects(), kept()
    names = {*asked.names}
    chosen = [n for n, (library, _) in every.items() if not names or {n, library} & names]
    again = {name for name in chosen if names or (asked.retry and unlike(known.get(name)))}
    for name in track([n for n in chosen if n in again or n not in known], "the wild"):
        library, subject = every[name]
        row = Row(name, library, versions(library))
        row = attempt(row, partial(look, subject=subject), asked.seconds)
        add(KEPT, row)
    done = [*kept().values()]
    keep(KEPT, done)
    report(done)
    return int(any(row.status == "wrong" for row in done))


def unlike(row: Row | None) -> bool:
    return row is not None and row.status != "done"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
