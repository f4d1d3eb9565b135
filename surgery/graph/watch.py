"""Watch a forward pass from outside: how far it gets, and whether what it returns is plausible."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from surgery.graph.structure import tensors


@dataclass
class Seen:
    """What the last forward pass under watch did.

    Attributes:
        finished: how many modules returned something.
        begun: how many modules were called.
        where: the innermost module that failed, by class and the shapes it was given.
        largest: the largest index that fell outside of an embedding's table, with its
            ``limit``, the number of rows; both None where every index is inside.
        shapes: the shapes of all tensors the root returned.
    """

    finished: int = 0
    begun: int = 0
    where: str = ""
    largest: int | None = None
    limit: int | None = None
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """The size of the first output's first axis."""
        return next((shape[0] for shape in self.shapes if shape), 0)

    def keeps_batch(self, batch: int) -> bool:
        """Whether an output has the batch as its first axis (second, in a sequence) or none."""
        return not self.shapes or any(
            not shape or shape[0] == batch or (len(shape) > 2 and shape[1] == batch)
            for shape in self.shapes
        )

    def start(self, module: nn.Module, args: Any) -> None:
        """A module begins; a root begins a new pass."""
        if not self.open:
            self.__init__()  # type: ignore[misc]
        shapes = ", ".join(str(list(tensor.shape)) for _, tensor in tensors(args))
        self.begun += 1
        self.open.append(f"{type(module).__name__}({shapes})")
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and args:
            self._check_rows(args[0], module.num_embeddings)

    def end(self, output: Any) -> None:
        """A module ends; one that fails returns None."""
        name = self.open.pop() if self.open else ""
        if output is None:
            self.where = self.where or name
            return
        self.finished += 1
        if not self.open:
            self.shapes = [tuple(tensor.shape) for _, tensor in tensors(output)]

    def _check_rows(self, ids: Any, rows: int) -> None:
        # On meta an embedding does not check its indices.
        if type(ids) is torch.Tensor and not ids.is_meta and ids.numel():
            largest = int(ids.max())
            if largest >= rows and (self.limit is None or rows < self.limit):
                self.largest, self.limit = largest, rows


@contextlib.contextmanager
def watch() -> Iterator[Seen]:
    """Watch every module that this thread runs; no model is touched.

    Example:
        >>> import torch
        >>> from surgery.graph.watch import watch
        >>> with watch() as seen:
        ...     _ = torch.nn.Sequential(torch.nn.ReLU())(torch.zeros(2, 3))
        >>> seen.finished, seen.shapes
        (2, [(2, 3)])
    """
    seen = Seen()
    thread = threading.get_ident()

    def before(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            seen.start(module, args)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            seen.end(output)

    with contextlib.ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(before).remove)
        stack.callback(register_module_forward_hook(after, always_call=True).remove)
        yield seen
