"""Initialisers of torch that look at what they draw, and are therefore recorded as a whole.

A truncated normal distribution is drawn by drawing again whatever lies outside: followed operation
by operation, it would have to run.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import init

from surgery.deferred.recorder import Recorder

# Everybody's trunc_normal_ ends here, however they imported it.
_NAMES = ("_no_grad_trunc_normal_",)
_active = threading.local()
_lock = threading.Lock()
_originals: dict[str, Callable[..., Any]] = {}
_users = 0


@contextlib.contextmanager
def recorded_by(recorder: Recorder) -> Iterator[None]:
    """Inside, calls of this thread are recorded; those of other threads are as ever.

    Args:
        recorder: where to record them.
    """
    global _users
    before = getattr(_active, "recorder", None)
    with _lock:
        if _users == 0:
            _originals.update({name: getattr(init, name) for name in _NAMES if hasattr(init, name)})
            for name, original in _originals.items():
                setattr(init, name, _recording(original))
        _users += 1
    _active.recorder = recorder
    try:
        yield
    finally:
        _active.recorder = before
        with _lock:
            _users -= 1
            if _users == 0:
                for name, original in _originals.items():
                    setattr(init, name, original)
                _originals.clear()


def _recording(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def initialise(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder: Recorder | None = getattr(_active, "recorder", None)
        source = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)]
        if recorder is None or source or not recorder.can_defer_call(tensor):
            return original(tensor, *args, **kwargs)
        recorder.defer_call(functools.partial(original, **kwargs), tensor, *args)
        return tensor

    return initialise
