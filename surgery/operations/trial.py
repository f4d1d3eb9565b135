"""Run stand-ins of two models on one random input, with the same weights."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError
from surgery.graph.canonical import Canonical, Cell, Slot
from surgery.graph.example import Example
from surgery.graph.execute import RealExecution
from surgery.graph.graph import Graph
from surgery.graph.kept import kept
from surgery.graph.skeleton import Skeleton, is_floating
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.align import Twins
from surgery.operations.correspondence import Correspondence

# What a random weight is multiplied with, that signals neither die nor explode.
_GAIN = math.sqrt(2)


@dataclass(frozen=True, eq=False)
class Results:
    """What came out of one forward pass: the outputs by path, and what some modules returned."""

    outputs: dict[str, torch.Tensor]
    modules: dict[str, torch.Tensor]


def run(skeleton: Skeleton, example: Example, watched: Iterable[str]) -> Results:
    """One forward pass of a stand-in in eval mode.

    Args:
        skeleton: the stand-in.
        example: what it is run on.
        watched: addresses of modules whose results are wanted; of several calls the last.
    """
    model = skeleton.model.eval()
    seen: dict[str, torch.Tensor] = {}

    def note(address: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[address] = next(tensor for _, tensor in tensors(output)).clone()

        return hook

    execution = RealExecution(skeleton.stand_ins, None)
    with contextlib.ExitStack() as stack:
        for address in watched:
            handle = tree.get_module(model, address).register_forward_hook(note(address))
            stack.callback(handle.remove)
        stack.enter_context(kept(skeleton.originals))
        stack.enter_context(contextlib.closing(execution))
        stack.enter_context(torch.no_grad())
        stack.enter_context(execution)
        output = example.call(model)
    return Results(dict(tensors(output)), seen)


def precision(models: Iterable[nn.Module]) -> torch.dtype:
    """Double where there is memory for it."""
    wanted = sum(
        8 * entry.tensor.numel()
        for model in models
        for entry in tree.index(model).of_kind("parameter", "buffer")
    )
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return torch.float64
    return torch.float64 if wanted < free // 3 else torch.float32


def device_of(model: nn.Module) -> torch.device:
    """Where a model is."""
    return next((e.tensor.device for e in tree.index(model).tensors.values()), torch.device("cpu"))


def draw_inputs(
    twins: Twins, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> tuple[Example, Example]:
    """One random input in both forms: the same tensors in the same order.

    Args:
        twins: the models, with examples of what they take.
        dtype: of what is floating.
        device: where it is to be.
        generator: what it is drawn from.
    """
    drawn: list[torch.Tensor] = []
    limits = _tables(twins.graphs[0])

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        if is_floating(tensor.dtype):
            made = torch.randn(tensor.shape, dtype=dtype, generator=generator)
        elif tensor.dtype == torch.int64 and len(drawn) in limits:
            made = torch.randint(limits[len(drawn)], tensor.shape, generator=generator)
        else:
            made = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.clone()
        drawn.append(made.to(device))
        return drawn[-1]

    first = replaced(twins.examples[0], fresh)
    again = iter(drawn)
    return first, replaced(twins.examples[1], lambda tensor: next(again).clone())


def replaced(example: Example, new: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """An example with other tensors."""
    return Example(
        tuple(replace_tensors(value, new) for value in example.args),
        {name: replace_tensors(value, new) for name, value in example.kwargs.items()},
        forward=example.forward,
    )


def _tables(graph: Graph) -> dict[int, int]:
    """Which inputs are looked up in a table, and how many rows it has."""
    found: dict[int, int] = {}
    inputs = [node.index for node in graph.nodes if node.role == "input"]
    for node in graph.operations:
        if node.operation != "aten.embedding.default":
            continue
        source = graph.nodes[node.inputs[1].node]
        while source.role == "operation" and len(source.inputs) == 1:
            source = graph.nodes[source.inputs[0].node]
        if source.index in inputs:
            rows = graph.spec(node.inputs[0]).shape[0]
            place = inputs.index(source.index)
            found[place] = min(rows, found.get(place, rows))
    return found


def convert(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Bring a stand-in to one precision; the model that it stands for is not touched."""
    for entry in list(tree.index(model).tensors.values()):
        tensor = entry.tensor
        if is_floating(tensor.dtype) and not tensor.is_meta:
            _put(model, entry, tensor.detach().to(device, dtype))


def randomise(model: nn.Module, side: Canonical, generator: torch.Generator) -> None:
    """Give every tensor that an operation has random numbers that carry signals through.

    Args:
        model: a stand-in; its tensors are replaced, not written.
        side: its cells.
        generator: where they are drawn from.
    """
    made: dict[str, torch.Tensor] = {}
    entries = {e.address: e for e in tree.index(model).of_kind("parameter", "buffer")}
    for cell in side.cells:
        for slot in cell.slots:
            entry = entries.get(slot.piece.address)
            if entry is None or not is_floating(entry.tensor.dtype):
                continue
            if entry.address not in made:
                # A copy in any case: in double precision a stand-in has the model's own memory.
                values = entry.tensor.detach().clone(memory_format=torch.contiguous_format)
                made[entry.address] = values
            place = slot.piece.of(made[entry.address])
            place.copy_(_drawn(cell, slot, place.shape, generator))
    for address, values in made.items():
        _put(model, entries[address], values)


def _drawn(cell: Cell, slot: Slot, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random numbers for one slot: positive where a variance, a scale or a value must be."""
    if slot.role.startswith(("bias", "mean")):
        return torch.randn(shape, dtype=torch.float64, generator=generator) / 10
    if cell.kind == "product":
        size = _GAIN / math.sqrt(max(math.prod(slot.shape[1:]), 1))
        return torch.randn(shape, dtype=torch.float64, generator=generator) * size
    if cell.kind == "lookup":
        return torch.randn(shape, dtype=torch.float64, generator=generator)
    return torch.rand(shape, dtype=torch.float64, generator=generator) + 0.5


def _put(model: nn.Module, entry: tree.Entry, values: torch.Tensor) -> None:
    if entry.kind == "attribute":
        for address in entry.addresses:
            # One that is made anew at every forward follows by itself.
            with contextlib.suppress(AddressError):
                tree.put(model, address, values)
    else:
        entry.tensor.data = values


def fill(
    model: nn.Module,
    donor: nn.Module,
    correspondence: Correspondence,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give a stand-in the donor's values, without a copy where they fit as they are."""
    theirs = {entry.address: entry.tensor.detach() for entry in tree.index(donor).tensors.values()}
    for entry in list(tree.index(model).tensors.values()):
        if entry.address in correspondence.parts:
            made = correspondence.assemble(entry.address, theirs.__getitem__)
            _put(model, entry, made if is_floating(made.dtype) else made.clone())
        elif is_floating(entry.tensor.dtype) and not entry.tensor.is_meta:
            _put(model, entry, entry.tensor.detach().to(device, dtype))
