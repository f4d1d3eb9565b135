"""A recorded forward pass, as values: no module and no tensor is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch

from surgery.shown import Shown

Role: TypeAlias = Literal["operation", "parameter", "buffer", "constant", "input"]


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Output number ``output`` of node number ``node``."""

    node: int
    output: int = 0

    def __str__(self) -> str:
        return f"%{self.node}" if self.output == 0 else f"%{self.node}.{self.output}"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the forward pass, or one tensor it starts from.

    Attributes:
        index: its place in ``Graph.nodes``, in order of execution.
        role: ``operation``, or where a tensor comes from: ``parameter``, ``buffer``,
            ``constant`` (made outside the recording, or a plain attribute) or ``input``.
        operation: the full aten name, ``aten.addmm.default``; empty for sources.
        arguments: positional arguments: a ``Ref`` for each tensor, anything else as it was.
        keywords: keyword arguments, as (name, value) pairs.
        outputs: shape and dtype of every output.
        addresses: for a source: every address of the parameter or buffer, or the input's path.
        parameters: addresses of the parameters it consumes, directly or through operations
            on parameters alone (a transpose, a weight norm); one tuple per parameter.
        module: address of the module it ran in (``""`` is the root).
        flops: floating-point operations, by the formulas of ``torch.utils.flop_counter``.
        depends_on_input: whether its value can change with the example.
        inputs: every tensor it reads, in order.
    """

    index: int
    role: Role
    operation: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    outputs: tuple[Spec, ...]
    addresses: tuple[str, ...]
    parameters: tuple[tuple[str, ...], ...]
    module: str
    flops: int
    depends_on_input: bool
    inputs: tuple[Ref, ...]

    def __str__(self) -> str:
        produced = ", ".join(str(spec) for spec in self.outputs)
        if self.role != "operation":
            return f"%{self.index} = {self.role} {' = '.join(self.addresses) or '?'} : {produced}"
        given = [_text(value) for value in self.arguments]
        given += [f"{name}={_text(value)}" for name, value in self.keywords]
        return f"%{self.index} = {self.operation}({', '.join(given)}) : {produced}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor of the model's output.

    Attributes:
        path: where it is in the returned structure: ``output``, ``output[0]``,
            ``output.logits``, ``output['aux']``.
        spec: its shape and dtype.
        source: the value it is, or None where it came from outside the recording.
    """

    path: str
    spec: Spec
    source: Ref | None


@dataclass(frozen=True, repr=False)
class Graph(Shown):
    """One forward pass: operations, the parameters each consumes, edges, outputs, blind spots.

    ``print(graph)`` shows a summary, ``print(graph.listing)`` every operation.

    Attributes:
        nodes: sources and operations in order of execution.
        leaves: every tensor in the output, by path.
        training: whether the root module was in train mode.
        backend: ``meta`` where nothing was computed, ``real`` where the forward pass needed
            values (then the branches it took are those of one random input).
        blind_spots: what the recording could not see, in sentences.
    """

    nodes: tuple[Node, ...]
    leaves: tuple[Leaf, ...]
    training: bool
    backend: Literal["meta", "real"]
    blind_spots: tuple[str, ...] = ()

    def __repr__(self) -> str:
        mode = "train" if self.training else "eval"
        count = sum(1 for _ in self.operations)
        return f"<Graph of {count} operations, {len(self.leaves)} outputs, {mode}, {self.backend}>"

    @property
    def operations(self) -> Iterator[Node]:
        """The nodes that are operations, in order of execution."""
        return (node for node in self.nodes if node.role == "operation")

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole pass."""
        return sum(node.flops for node in self.nodes)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For every node, the nodes that read any of its outputs, in order."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for ref in node.inputs:
                if not found[ref.node] or found[ref.node][-1] != node.index:
                    found[ref.node].append(node.index)
        return tuple(tuple(users) for users in found)

    def spec(self, ref: Ref) -> Spec:
        """Shape and dtype of a value."""
        return self.nodes[ref.node].outputs[ref.output]

    @property
    def fingerprint(self) -> str:
        """A digest of everything in the graph: equal for equal graphs, in every process."""
        digest = hashlib.sha256()
        for node in self.nodes:
            digest.update(f"{node}|{node.module}|{node.parameters}|{node.flops}\n".encode())
        digest.update(f"{self.leaves}|{self.training}|{self.backend}|{self.blind_spots}".encode())
        return digest.hexdigest()

    @property
    def listing(self) -> str:
        """Every source and operation, every output and every blind spot, one a line."""
        lines = [str(node) for node in self.nodes]
        lines += [
            f"{leaf.path} = {leaf.source or '(outside)'} : {leaf.spec}" for leaf in self.leaves
        ]
        lines += [f"blind spot: {spot}" for spot in self.blind_spots]
        return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    return str(value)
