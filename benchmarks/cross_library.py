"""Weights of one library in another library's model: every pair, in both directions.

Weights and statistics are random, so that nothing is equal by chance. A row succeeds where the
transplant proved, in double precision, that both models compute the same. Each row is kept in
`build/` as it is done: after an interruption the next run goes on from there.

python -m benchmarks.cross_library              # all, and the table
python -m benchmarks.cross_library vit swin     # pairs whose name holds one of these, no table
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import inspect
import json
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import surgery
from benchmarks.implementations import Model
from benchmarks.registry import ROOT
from benchmarks.timing import THREADS, machine, markdown, publish, times
from benchmarks.twins import ABSENT, Twin, strangers, twins
from surgery import tree
from surgery.errors import SurgeryError
from surgery.families.registry import Registry
from surgery.operations.align import correspondences, twins_of
from surgery.operations.plan import Outcome

KEPT = ROOT / "build" / "cross_library.jsonl"
PACKAGES = (
    "torchvision",
    "timm",
    "transformers",
    "efficientnet-pytorch",
    "open_clip_torch",
    "segmentation-models-pytorch",
)
# Where transplants by graph begin: all of this library that they import decides over a row.
BEGINS = "surgery.operations.by_graph"
OWN = "surgery."
NOTHING = Registry.of()
ROUNDS = 2
_SET = re.compile(r"set as in the donor: \S*?(\w+) (.+) -> (.+)")


@dataclass
class Row:
    """What became of one pair in one direction.

    Attributes:
        donor: the model that gave its weights.
        recipient: the model that got them.
        size: of the images, in pixels; 0 for text.
        given: what both configurations were given.
        proof: the largest difference, as the outcome states it; empty where it failed.
        reason: why it failed.
        settings: what was set as in the donor, and how often.
        ambiguous: groups of operations that only order told apart.
        by_order: the share of tensors that pairing by order and size puts in the right place.
        converter: what a hand-written converter made of the checkpoint: ``equal``, ``wrong``,
            or empty where there is none.
        ratio: the time of the alignment, where the recordings of both models take 1.
    """

    donor: str
    recipient: str
    size: int
    given: str
    proof: str = ""
    reason: str = ""
    settings: str = ""
    ambiguous: int = 0
    by_order: float = 0.0
    converter: str = ""
    ratio: float = 0.0


def randomised(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """A model in which no tensor holds one value throughout, and signals stay alive.

    The statistics of every normalisation are drawn near those of what it normalises: with others
    a deep model shuts its gates or overflows, and equal outputs would say less.
    """
    generator = torch.Generator().manual_seed(7)
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        tensor = entry.tensor.detach()
        if not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        if entry.kind == "buffer" and not entry.address.endswith(("_mean", "_var")):
            continue
        if bool((tensor == tensor.flatten()[0]).all()):
            tensor += torch.rand(tensor.shape, generator=generator) / 2

    def settle(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        axes = [axis for axis in range(args[0].dim()) if axis != 1]
        spread = args[0].var(axes, correction=0) + 0.01 * args[0].var(correction=0)
        drawn = torch.rand(2, len(spread), generator=generator)
        module.running_mean = args[0].mean(axes) + (drawn[0] - 0.5) * spread.sqrt()
        module.running_var = spread * (drawn[1] + 0.5)

    norms = [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    hooks = [module.register_forward_pre_hook(settle) for module in norms]
    if norms:
        with torch.no_grad():
            model(torch.randn(example.shape, generator=generator))
    for hook in hooks:
        hook.remove()
    # What it keeps of its weights in eval mode, it forgets in train mode.
    return model.train().eval()


def by_order(donor: nn.Module, recipient: nn.Module) -> dict[str, str]:
    """What people try: each tensor gets the next one of its size."""
    waiting: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in donor.state_dict().items():
        waiting.setdefault(tuple(tensor.shape), []).append(name)
    found = {}
    for name, tensor in recipient.state_dict().items():
        same = waiting.get(tuple(tensor.shape))
        if same:
            found[name] = same.pop(0)
    return found


def agreement(outcome: Outcome, donor: nn.Module, guessed: dict[str, str]) -> float:
    """The share of the recipient's tensors for which a guess names what was proven."""
    theirs = donor.state_dict()
    state = outcome.model.state_dict()
    filled = [step.address for step in outcome.plan.steps if step.kind == "values"]
    filled = [address for address in filled if address in state]
    right = sum(
        address in guessed and torch.equal(theirs[guessed[address]], state[address])
        for address in filled
    )
    return right / max(len(filled), 1)


def converted(donor: nn.Module, recipient: nn.Module, twin: Model, outcome: Outcome) -> str:
    """What the recipient's library makes of the donor's checkpoint, if it says how."""
    if twin.library != "timm":
        return ""
    module = importlib.import_module(type(recipient).__module__)
    convert: Callable[..., dict[str, torch.Tensor]] | None = next(
        (
            function
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if name in ("checkpoint_filter_fn", "_filter_fn")
        ),
        None,
    )
    if convert is None:
        return ""
    try:
        given = [dict(donor.state_dict()), recipient]
        made = dict(convert(*given[: len(inspect.signature(convert).parameters)]))
    except Exception as error:
        return f"raises {type(error).__name__}"
    state = outcome.model.state_dict()
    filled = [s.address for s in outcome.plan.steps if s.kind == "values" and s.address in state]
    right = [a for a in filled if a in made and made[a].shape == state[a].shape]
    same = all(torch.equal(made[address], state[address]) for address in right)
    return "equal" if same and len(right) == len(filled) else "wrong"


def timed(donor: nn.Module, recipient: nn.Module, example: torch.Tensor) -> tuple[float, int]:
    """The time of the alignment against that of both recordings, and what stayed ambiguous.

    As in `timeit`, nothing is collected meanwhile: a collection looks at all that is in memory, the
    libraries above all, and hits the one or the other by chance.
    """
    twins_of(donor, recipient, example, registry=NOTHING)
    gc.collect()
    gc.disable()
    try:
        taken = [_timed(donor, recipient, example) for _ in range(ROUNDS)]
    finally:
        gc.enable()
    aligning, recording = (min(each[place] for each in taken) for place in (0, 1))
    return aligning / recording, taken[0][2]


def _timed(
    donor: nn.Module, recipient: nn.Module, example: torch.Tensor
) -> tuple[float, float, int]:
    start = time.thread_time()
    recorded = twins_of(donor, recipient, example, registry=NOTHING)
    between = time.thread_time()
    found, _ = next(correspondences(recorded))
    return time.thread_time() - between, between - start, found.ambiguous


def key(donor: Model, recipient: Model, twin: Twin) -> tuple[str, str, int, str]:
    """What a row is known by."""
    given = f"{dict(donor.settings)}, {dict(recipient.settings)}, {twin.words}"
    return str(donor), str(recipient), twin.size, given


def attempt(donor: Model, recipient: Model, twin: Twin) -> Row:
    """Bring the weights of one model into another."""
    row, example = Row(*key(donor, recipient, twin)), twin.example()
    try:
        one, other = randomised(donor.make(), example), recipient.make()
        row.ratio, row.ambiguous = timed(one, other, example)
        outcome = surgery.transplant(
            one,
            other,
            match="graph",
            differences="set",
            example=example,
            registry=NOTHING,
        )
    except SurgeryError as error:
        row.reason = " ".join(str(error).split())[:600]
        return row
    except Exception as error:
        said = f"{type(error).__name__}: {error} {traceback.format_exc()[-300:]}"
        row.reason = " ".join(said.split())
        return row
    row.proof = next(n for n in outcome.plan.notes if n.startswith("proven: "))[8:]
    changes = Counter(
        " ".join((found[1], found[2], "->", found[3]))
        for note in outcome.plan.notes
        if (found := _SET.fullmatch(note))
    )
    row.settings = ", ".join(f"{count} x {change}" for change, count in changes.items())
    row.by_order = agreement(outcome, one, by_order(one, other))
    row.converter = converted(one, other, recipient, outcome)
    return row


def imported(first: str = BEGINS) -> list[Path]:
    """The files that decide over a row: a module and all that it imports.

    Args:
        first: the module's name.

    Returns:
        Those of this library, in order.
    """
    pending, found = [first], dict[str, Path]()
    while pending:
        name = pending.pop()
        source = find_spec(name)
        if name in found or source is None or source.origin is None:
            continue
        found[name] = Path(source.origin)
        tree_of = ast.parse(found[name].read_text("utf-8"))
        for node in ast.walk(tree_of):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            else:
                continue
            pending += [each for each in names if each.startswith(OWN) and _is_module(each)]
    return sorted(found.values())


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        # What is imported from a module and not from a package.
        return False


def circumstances() -> str:
    """What a kept row depends on."""
    digest = hashlib.sha256(machine(*PACKAGES).encode())
    for path in (*imported(), ROOT / "benchmarks/implementations.py", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def kept(stamp: str) -> dict[tuple[str, str, int, str], Row]:
    """The rows of a run that was interrupted, if they were made by the same code."""
    if not KEPT.exists() or not KEPT.read_text("utf-8"):
        return {}
    first, *lines = KEPT.read_text("utf-8").splitlines()
    if json.loads(first) != stamp:
        return {}
    rows = [Row(**json.loads(line)) for line in lines]
    return {(row.donor, row.recipient, row.size, row.given): row for row in rows}


def examined(pairs: Sequence[Twin]) -> Iterator[Row]:
    """A row for each pair and direction."""
    stamp = circumstances()
    done = kept(stamp)
    if not done:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(f"{json.dumps(stamp)}\n", "utf-8")
    for twin in pairs:
        for donor, recipient in ((twin.one, twin.other), (twin.other, twin.one)):
            row = done.get(key(donor, recipient, twin))
            if row is None:
                row = attempt(donor, recipient, twin)
                gc.collect()
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(asdict(row))}\n")
            print(f"{row.donor} -> {row.recipient}: {row.proof or 'FAILED ' + row.reason}")
            yield row


def table(rows: Sequence[Row]) -> str:
    """All rows."""
    headers = ("from", "to", "largest difference", "set", "by order", "converter", "time")
    cells = [
        (
            row.donor,
            row.recipient,
            row.proof.split(" in float")[0].removeprefix("largest difference ")
            if row.proof
            else f"failed: {row.reason[:160]}",
            row.settings,
            f"{row.by_order:.0%}" if row.proof else "",
            row.converter,
            times(row.ratio) if row.ratio else "",
        )
        for row in rows
    ]
    return markdown(headers, cells)


def summary(rows: Sequence[Row]) -> str:
    """What the table comes to."""
    good = [row for row in rows if row.proof]
    ordered = [row for row in good if row.by_order == 1]
    made = [row for row in good if row.converter]
    right = sum(row.converter == "equal" for row in made)
    slow = max((row.ratio for row in rows), default=0.0)
    return (
        f"{len(good)} of {len(rows)} succeed ({len(good) / max(len(rows), 1):.0%}), proven by "
        f"output. Pairing by order and size puts every tensor in its place in {len(ordered)} of "
        f"them. A hand-written converter applies to {len(made)} and is right in {right}. The "
        f"slowest alignment took {times(slow)} the time of recording both models."
    )


def main(wanted: Sequence[str] = ()) -> int:
    """Examine pairs, print them, and write the table where all were examined."""
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    chosen = [t for t in twins() if not wanted or any(word in str(t) for word in wanted)]
    rows = list(examined(chosen))
    if wanted:
        print(table(rows))
        return int(any(not row.proof for row in rows))
    refused = list(examined(list(strangers())))
    failed = [row for row in rows if not row.proof]
    publish(
        "cross_library",
        "Weights of one library in another library's model",
        machine(*PACKAGES),
        summary(rows),
        table(rows),
        "## Alike, and not the same",
        "These pairs must be refused, with what they differ in:",
        "\n".join(f"- {r.donor} to {r.recipient}: {r.reason or 'NOT REFUSED'}" for r in refused),
        "## Not in the table",
        "\n".join(f"- {name}: {reason}" for name, reason in ABSENT.items()),
        "## Failures",
        "\n".join(f"- {r.donor} to {r.recipient}: {r.reason}" for r in failed) or "None.",
    )
    return int(len(failed) > 0.05 * len(rows) or any(row.proof for row in refused))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
