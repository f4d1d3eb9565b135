"""Run foreign code and leave the interpreter as it was."""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Iterator

import torch

_SEED = 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Fixed random numbers, eager code and no gradients inside; everything as before outside.

    Covers the generators of torch (CPU and every CUDA device in use), Python and NumPy, grad and
    inference mode, the fused attention path (it has no meta kernel), and warnings.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_seeded())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_eager())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    state = torch.get_rng_state()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if started else None
    python = random.getstate()
    numpy = sys.modules.get("numpy.random")
    numpy_state = numpy.get_state() if numpy is not None else None
    torch.default_generator.manual_seed(_SEED)
    random.seed(_SEED)
    if numpy is not None:
        numpy.seed(_SEED)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(numpy_state)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        # Nothing can be compiled where dynamo was never imported, and importing it is slow.
        if "torch._dynamo" in sys.modules:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
