"""Write down every operation of a forward pass, in order, with where each tensor came from."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from surgery.graph import remembered
from surgery.graph.graph import Node, Ref, Role, Spec
from surgery.graph.operators import Call, results
from surgery.graph.skeleton import Skeleton

# No operator: a tensor after something was written into its memory through another view.
UPDATED = "surgery.updated"
# Arguments that the graph keeps; of anything else but tensors and lists, it keeps a name.
_AS_THEY_ARE = frozenset({type(None), bool, int, str, complex})
_AS_THEY_ARE |= {torch.dtype, torch.memory_format, torch.layout}


@dataclass(slots=True, eq=False)
class _Value:
    """Which output of which node a tensor is, and the number of the memory it lives in."""

    holder: Any
    ref: Ref
    memory: int


class Recorder:
    """The observer of an execution; what it saw becomes the nodes of a graph.

    Args:
        skeleton: the model that is going to run; its stand-ins become source nodes.
        keep: hold every tensor, so that its ``id`` stays its own; where tensors are real and
            take memory, False holds weak references.
    """

    def __init__(self, skeleton: Skeleton, *, keep: bool) -> None:
        self.sources = skeleton.sources
        self.keep = keep
        self.values: dict[int, _Value] = {}
        self.writers: dict[int, Ref] = {}
        self.memories = 0
        self.nodes: list[Node] = []
        self.modules: list[str] = [""]

    @contextlib.contextmanager
    def watching(self, modules: Iterable[tuple[nn.Module, str]]) -> Iterator[None]:
        """Know which of these modules runs, by its address, inside this context."""
        watched = [module.__dict__ for module, _ in modules]
        for module, address in modules:
            # ``nn.Module.__call__`` asks this attribute first; hooks run inside of it.
            module.__dict__["_compiled_call_impl"] = _announced(module, address, self.modules)
        try:
            yield
        finally:
            for state in watched:
                del state["_compiled_call_impl"]

    def note(self, call: Call, result: Any) -> None:
        """Write one operation down."""
        inputs = tuple([self.ref(tensor) for tensor in call.given])
        refs = iter(inputs)
        arguments = tuple([_recorded(value, refs) for value in call.args])
        keywords = tuple([(name, _recorded(value, refs)) for name, value in call.kwargs.items()])
        known = call.known
        produced = results(result)
        if known.returns_new:
            memories = [self._memory(None) for _ in produced]
        else:
            memories = [self._memory(call.aliased(place)) for place in range(len(produced))]
        written = call.written() if known.written else []
        for tensor in written:
            if all(tensor is not other for other in produced):
                produced.append(tensor)
                memories.append(self._memory(tensor))
        index = self._append(
            "operation",
            tuple([spec_of(tensor) for tensor in produced]),
            operation=known.name,
            arguments=arguments,
            keywords=keywords,
            inputs=inputs,
            flops=remembered.flops(call, result),
        )
        for position, (tensor, memory) in enumerate(zip(produced, memories, strict=True)):
            self._remember(tensor, Ref(index, position), memory)
        for tensor in written:
            value = self.values[id(tensor)]
            self.writers[value.memory] = value.ref

    def add_source(self, role: Role, addresses: tuple[str, ...], tensor: torch.Tensor) -> Ref:
        """Write down a tensor that no operation made."""
        ref = Ref(self._append(role, (spec_of(tensor),), addresses=addresses))
        self._remember(tensor, ref, self._memory(None))
        return ref

    def ref(self, tensor: torch.Tensor) -> Ref:
        """The value a tensor is now; a source is written down where it is new."""
        value = self._value(tensor)
        if value is None:
            entry = self.sources.get(id(tensor))
            if entry is None:
                return self.add_source("constant", (), tensor)
            role: Role = "constant" if entry.kind == "attribute" else entry.kind
            return self.add_source(role, entry.addresses, tensor)
        writer = self.writers.get(value.memory)
        if writer is not None and writer.node > value.ref.node:
            inputs = (value.ref, writer)
            outputs = (spec_of(tensor),)
            index = self._append(
                "operation", outputs, operation=UPDATED, arguments=inputs, inputs=inputs
            )
            value.ref = Ref(index)
        return value.ref

    def known(self, tensor: torch.Tensor) -> Ref | None:
        """The value an output tensor is, or None where it came from outside the recording."""
        if self._value(tensor) is None and id(tensor) not in self.sources:
            return None
        return self.ref(tensor)

    def _append(
        self,
        role: Role,
        outputs: tuple[Spec, ...],
        *,
        operation: str = "",
        arguments: tuple[Any, ...] = (),
        keywords: tuple[tuple[str, Any], ...] = (),
        addresses: tuple[str, ...] = (),
        inputs: tuple[Ref, ...] = (),
        flops: int = 0,
    ) -> int:
        depends = role == "input"
        parameters: tuple[tuple[str, ...], ...] = (addresses,) if role == "parameter" else ()
        for ref in inputs:
            node = self.nodes[ref.node]
            if node.depends_on_input:
                depends = True
            elif node.parameters and not parameters:
                parameters = node.parameters
            elif node.parameters:
                parameters = tuple(dict.fromkeys(parameters + node.parameters))
        index = len(self.nodes)
        self.nodes.append(
            Node(
                index,
                role,
                operation,
                arguments,
                keywords,
                outputs,
                addresses,
                parameters,
                self.modules[-1] if role == "operation" else "",
                flops,
                depends,
                inputs,
            )
        )
        return index

    def _value(self, tensor: torch.Tensor) -> _Value | None:
        value = self.values.get(id(tensor))
        if value is None or self.keep or value.holder() is tensor:
            return value
        return None

    def _remember(self, tensor: torch.Tensor, ref: Ref, memory: int) -> None:
        holder = tensor if self.keep else weakref.ref(tensor)
        self.values[id(tensor)] = _Value(holder, ref, memory)

    def _memory(self, original: torch.Tensor | None) -> int:
        value = self._value(original) if original is not None else None
        if value is not None:
            return value.memory
        self.memories += 1
        return self.memories


def spec_of(tensor: torch.Tensor) -> Spec:
    """Shape and dtype of a live tensor."""
    return _spec(tensor.shape, tensor.dtype)


@lru_cache(maxsize=4096)
def _spec(shape: torch.Size, dtype: torch.dtype) -> Spec:
    return Spec(tuple(shape), dtype)


def _recorded(value: Any, refs: Any) -> Any:
    """An argument as the graph keeps it: a Ref for a tensor, plain values otherwise."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, torch.Tensor):
        return next(refs)
    if isinstance(value, list | tuple):
        return tuple([_recorded(item, refs) for item in value])
    if isinstance(value, float):
        return value if value == value else "nan"
    return str(value) if isinstance(value, torch.device) else type(value).__name__


def _announced(module: nn.Module, address: str, stack: list[str]) -> Callable[..., Any]:
    """A module's call, with its address on top of a stack while it runs."""

    def call(*args: Any, **kwargs: Any) -> Any:
        stack.append(address)
        try:
            return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            stack.pop()

    return call
