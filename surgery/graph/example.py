"""The arguments of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from surgery.errors import ExampleError
from surgery.shown import Shown


@dataclass(frozen=True, eq=False)
class Example(Shown):
    """The arguments of one forward pass, with a form of its own for train mode where it differs.

    Args:
        args: positional arguments of ``forward``, tensors in any nesting.
        kwargs: keyword arguments of ``forward``.
        train: another example for train mode (detectors want targets then), or None.
        forward: ``forward(model, *args, **kwargs)``, recorded in place of the model's own where
            that depends on values: it runs the layers, and none of what is done with their
            answers. What it returns are the outputs.
        prepare: called with the model's stand-in before it is recorded: takes off what would be in
            the way, such as hooks that bring weights from elsewhere.

    Example:
        >>> import torch
        >>> from surgery.graph.example import Example
        >>> Example.of(torch.zeros(2, 3)).args[0].shape
        torch.Size([2, 3])
        >>> sorted(Example.of({"input_ids": torch.ones(2, 5, dtype=torch.long)}).kwargs)
        ['input_ids']
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    train: Example | None = None
    forward: Callable[..., Any] | None = None
    prepare: Callable[[nn.Module], None] | None = None

    @classmethod
    def of(cls, value: Any) -> Example:
        """Understand a bare tensor, a tuple of arguments, a dict of keywords, or an Example.

        Raises:
            ExampleError: anything else.
        """
        if isinstance(value, Example):
            return value
        if isinstance(value, torch.Tensor):
            return cls((value,))
        if isinstance(value, tuple):
            return cls(value)
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return cls((), dict(value))
        raise ExampleError(
            "this is not an example input",
            where="example",
            expected="a tensor, a tuple of arguments, a dict of keyword arguments, or an Example",
            found=type(value).__name__,
            fix="example=torch.randn(2, 3, 224, 224), or example=([tensor],) for one list argument",
        )

    def in_mode(self, train: bool) -> Example:
        """The form for this mode."""
        if not train or self.train is None:
            return self
        return replace(
            self.train,
            forward=self.forward or self.train.forward,
            prepare=self.prepare or self.train.prepare,
        )

    def call(self, model: nn.Module) -> Any:
        """Run a model on these arguments, or what stands in for its forward."""
        run = model if self.forward is None else partial(self.forward, model)
        return run(*self.args, **self.kwargs)
