"""Faults at every step that code takes, found by tracing it once.

An event is a line about to run in ``surgery/operations``, a call from there into C (``setattr``,
``dict.pop``, ``tensor.to``) before and after it takes effect, an assignment to any module, and an
operation that writes to a tensor, before and after.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode

import surgery

OPERATIONS = str(Path(surgery.__file__).parent / "operations")
_CALLS = {"call", "return", "c_call", "c_return"}
_ASSIGNS = {"__setattr__", "__setitem__", "__delattr__"}


class Fault(BaseException):
    """What is raised: like KeyboardInterrupt, no ``except Exception`` stops it."""


class Event(NamedTuple):
    """One thing that happens, and for the how manyth time it does."""

    kind: str
    where: str
    count: int = 1


class Tracer(TorchDispatchMode):
    """Notes every event, and raises at one."""

    def __init__(self, at: Event | None = None, start: str = "") -> None:
        super().__init__()
        self.at = at
        self.start = start
        self.counts: Counter[tuple[str, str]] = Counter()
        self.fired = False

    def happen(self, kind: str, where: str) -> None:
        if self.fired:
            return
        self.counts[kind, where] += 1
        if self.at is not None and (kind, where, self.counts[kind, where]) == self.at:
            self.fired = True
            raise Fault(self.at)

    def line(self, frame: FrameType, what: str, _: Any) -> Any:
        if self.fired or not frame.f_code.co_filename.startswith(OPERATIONS):
            return None
        if what == "line":
            self.happen("line", _place(frame))
        return self.line

    def call(self, frame: FrameType, what: str, function: Any) -> None:
        if self.fired or what not in _CALLS:
            return
        if what[0] == "c" and what != "call":
            if not frame.f_code.co_filename.startswith(OPERATIONS):
                return
            self.happen(what, f"{_place(frame)} {getattr(function, '__name__', function)}")
        elif frame.f_code.co_name in _ASSIGNS:
            self.happen(f"assignment {what}", f"{frame.f_code.co_name} {_assigned(frame)}")

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        writes = function._schema.is_mutable
        if writes:
            self.happen("before write", str(function))
        result = function(*args, **(kwargs or {}))
        if writes:
            self.happen("after write", str(function))
        return result

    @contextmanager
    def watching(self) -> Iterator[Tracer]:
        """Trace what is inside; to stop at an event, only its own sort."""
        kind = self.at.kind if self.at is not None else "write assignment line"
        trace, profile = sys.gettrace(), sys.getprofile()
        with self if "write" in kind else nullcontext():
            if "line" in kind:
                sys.settrace(self.line)
            if "assignment" in kind or kind.startswith("c_"):
                sys.setprofile(self.call)
            try:
                yield self
            finally:
                self.fired = True
                sys.setprofile(profile)
                sys.settrace(trace)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


def _assigned(frame: FrameType) -> str:
    values = frame.f_locals
    return f"{type(values.get('self')).__name__}.{values.get('name', values.get('attr'))}"


def events_of(action: Callable[[], object]) -> list[Event]:
    """Everything that happens in an action: of each sort the first and the last time."""
    tracer = Tracer()
    with tracer.watching():
        action()
    return [
        Event(kind, where, count)
        for (kind, where), last in tracer.counts.items()
        for count in sorted({1, last})
    ]


def fails_at(event: Event, action: Callable[[], object]) -> bool:
    """Run an action with a fault at one event; whether the event came and the fault got out."""
    tracer = Tracer(event)
    try:
        with tracer.watching():
            action()
    except Fault:
        return True
    return False


__all__ = ["Event", "Fault", "Tracer", "events_of", "fails_at"]
