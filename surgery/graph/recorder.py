"""Write down every operation of a forward pass, in order, with where each tensor came from."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from surgery.graph.graph import Node, Ref, Role, Spec
from surgery.graph.operators import Behaviour, aliased, argument_at, flat_tensors, results
from surgery.graph.skeleton import Skeleton

# No operator: a tensor after something was written into its memory through another view.
UPDATED = "surgery.updated"
# Outside the ids that torch gives to hooks.
_HOOK_ID = -1


@dataclass(slots=True, eq=False)
class _Value:
    """Which output of which node a tensor is, and the number of the memory it lives in."""

    holder: Any
    ref: Ref
    memory: int


@dataclass(slots=True, eq=False)
class _Row:
    """A node before it is known what it depends on."""

    role: Role
    outputs: tuple[Spec, ...]
    operation: str = ""
    arguments: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()
    addresses: tuple[str, ...] = ()
    module: str = ""
    flops: int = 0
    inputs: tuple[Ref, ...] = ()


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
        self.rows: list[_Row] = []
        self.modules: list[str] = [""]
        for module, address in skeleton.modules:
            _watch(module, address, self.modules)

    def note(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
        result: Any,
    ) -> None:
        """Write one operation down."""
        inputs = tuple([self.ref(tensor) for tensor in given])
        refs = iter(inputs)
        arguments = tuple([_recorded(value, refs) for value in args])
        keywords = tuple([(name, _recorded(value, refs)) for name, value in kwargs.items()])
        produced = [
            (tensor, self._memory(aliased(known, args, kwargs, position)))
            for position, tensor in enumerate(results(result))
        ]
        written = [
            tensor
            for key in known.written
            for tensor in flat_tensors((argument_at(args, kwargs, key),), {})
        ]
        produced += [
            (tensor, self._memory(tensor))
            for tensor in written
            if all(tensor is not other for other, _ in produced)
        ]
        index = len(self.rows)
        self.rows.append(
            _Row(
                "operation",
                tuple([spec_of(tensor) for tensor, _ in produced]),
                str(func),
                arguments,
                keywords,
                (),
                self.modules[-1],
                _flops(func, args, kwargs, result),
                inputs,
            )
        )
        for position, (tensor, memory) in enumerate(produced):
            self._remember(tensor, Ref(index, position), memory)
        for tensor in written:
            value = self.values[id(tensor)]
            self.writers[value.memory] = value.ref

    def add_source(self, role: Role, addresses: tuple[str, ...], tensor: torch.Tensor) -> Ref:
        """Write down a tensor that no operation made."""
        ref = Ref(len(self.rows))
        self.rows.append(_Row(role, (spec_of(tensor),), addresses=addresses))
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
            value.ref = Ref(len(self.rows))
            self.rows.append(
                _Row(
                    "operation",
                    (spec_of(tensor),),
                    UPDATED,
                    arguments=inputs,
                    module=self.modules[-1],
                    inputs=inputs,
                )
            )
        return value.ref

    def known(self, tensor: torch.Tensor) -> Ref | None:
        """The value an output tensor is, or None where it came from outside the recording."""
        if self._value(tensor) is None and id(tensor) not in self.sources:
            return None
        return self.ref(tensor)

    def nodes(self) -> tuple[Node, ...]:
        """What was written down, with what each node depends on."""
        nodes: list[Node] = []
        for index, row in enumerate(self.rows):
            sources = [nodes[ref.node] for ref in row.inputs]
            depends = row.role == "input" or any(node.depends_on_input for node in sources)
            if row.role == "parameter":
                parameters: tuple[tuple[str, ...], ...] = (row.addresses,)
            else:
                parameters = _union(
                    node.parameters for node in sources if not node.depends_on_input
                )
            nodes.append(
                Node(
                    index,
                    row.role,
                    row.operation,
                    row.arguments,
                    row.keywords,
                    row.outputs,
                    row.addresses,
                    parameters,
                    row.module,
                    row.flops,
                    depends,
                    row.inputs,
                )
            )
        return tuple(nodes)

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
    return Spec(tuple(tensor.shape), tensor.dtype)


def _recorded(value: Any, refs: Any) -> Any:
    """An argument as the graph keeps it: a Ref for a tensor, plain values otherwise."""
    if isinstance(value, torch.Tensor):
        return next(refs)
    if isinstance(value, list | tuple):
        return tuple([_recorded(item, refs) for item in value])
    if value is None or isinstance(value, bool | int | str | torch.dtype):
        return value
    if isinstance(value, float):
        return value if value == value else "nan"
    if isinstance(value, complex | torch.memory_format | torch.layout):
        return value
    return str(value) if isinstance(value, torch.device) else type(value).__name__


def _union(
    sets: Iterable[tuple[tuple[str, ...], ...]],
) -> tuple[tuple[str, ...], ...]:
    found: dict[tuple[str, ...], None] = {}
    for addresses in sets:
        for one in addresses:
            found[one] = None
    return tuple(found)


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula is not None else 0


def _watch(module: nn.Module, address: str, stack: list[str]) -> None:
    """Keep the address of the running module on top of a stack."""

    def enter(*_: Any) -> None:
        stack.append(address)

    def leave(*_: Any) -> None:
        # A caught exception inside forward may have left deeper modules on the stack.
        while len(stack) > 1 and stack.pop() != address:
            continue

    module._forward_pre_hooks = _first(enter, module._forward_pre_hooks)
    module._forward_hooks[_HOOK_ID] = leave


def _first(
    hook: Callable[..., None], hooks: dict[int, Callable[..., Any]]
) -> OrderedDict[int, Callable[..., Any]]:
    return OrderedDict([(_HOOK_ID, hook), *hooks.items()])
