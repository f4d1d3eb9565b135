"""What was found about a model, a line of a file each: a run may end anywhere and go on from there.

It is what `zoo.py`, `roles.py` and `wild.py` keep their results in.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """What was found about one model."""

    name: str
    library: str
    versions: str
    status: str = "failed"
    parameters: int = 0
    place: str = ""
    heads: tuple[str, ...] = ()
    right: dict[str, bool] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


def attempt(row: Row, look: Callable[[Row], Row], seconds: float) -> Row:
    """What is found at a model, with whatever goes wrong in the row, within a limit of time."""
    start = time.perf_counter()

    def stop(*_: object) -> None:
        raise TimeoutError(f"took over {seconds:.0f} s of processor time")

    # Of this process's own time: others on the machine do not count.
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = look(row)
    except ImportError as error:
        row = dataclasses.replace(row, status="missing", reason=str(error).strip().split("\n")[0])
    except Exception as error:  # of any model, and kept for the table
        words = f"{type(error).__name__}: {error}".splitlines()
        row = dataclasses.replace(row, reason=" ".join(map(str.strip, words))[:400])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    gc.collect()
    return dataclasses.replace(row, seconds=round(time.perf_counter() - start, 1))


def lines(path: Path) -> list[Row]:
    """The rows of a file, one a line."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [Row(**json.loads(line)) for line in text.splitlines()]


def add(path: Path, row: Row) -> None:
    """Write a row as soon as it is known, so that a run may end anywhere."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def keep(path: Path, rows: Sequence[Row]) -> None:
    """Write these rows and no other."""
    text = "".join(f"{json.dumps(dataclasses.asdict(row))}\n" for row in rows)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
