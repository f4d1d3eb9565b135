"""Run stand-ins of two models on one random input, with the same weights."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from surgery import tree
from surgery.errors import AddressError
from surgery.graph.canonical import Canonical, Cell, Slot
from surgery.graph.example import Example
from surgery.graph.execute import RealExecution
from surgery.graph.graph import Graph
from surgery.graph.kept import kept
from surgery.graph.operators import Call, argument_at
from surgery.graph.skeleton import Skeleton, is_floating
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.align import Twins
from surgery.operations.correspondence import Correspondence
from surgery.operations.steps import Steps

# What random weights are multiplied with, that signals neither die nor explode: what rectifiers
# ask for, what saturating activations ask for, and what loops in which all is added up do.
GAINS = (math.sqrt(2), 4 * math.sqrt(2), math.sqrt(2) / 4)


@dataclass(frozen=True, eq=False)
class Results:
    """What came out of one forward pass: the outputs by path, and what some modules returned.

    Attributes:
        outputs: by path.
        modules: by address of a module.
        nodes: by number of an operation in the recording.
        edges: by ``id`` of one of those, where the slopes of its numbers begin.
    """

    outputs: dict[str, torch.Tensor]
    modules: dict[str, torch.Tensor]
    nodes: dict[int, torch.Tensor] = field(default_factory=dict)
    edges: dict[int, GradientEdge] = field(default_factory=dict)


class Stepping(RealExecution):  # type: ignore[no-untyped-call]
    """Runs everything, step by step where somebody wants to know.

    Args:
        skeleton: a stand-in.
        steps: what to note and to put in, or None.
    """

    def __init__(self, skeleton: Skeleton, steps: Steps | None = None) -> None:
        super().__init__(skeleton.stand_ins, None)
        self.steps = steps
        # Whether the code that runs cast double precision down.
        self.cast = False

    def execute(self, call: Call) -> Any:
        """Run one operation."""
        if call.func is torch.ops.aten._to_copy.default:
            wanted = call.kwargs.get("dtype")
            down = wanted is not None and is_floating(wanted) and wanted != torch.float64
            self.cast |= down and any(each.dtype == torch.float64 for each in call.given)
        if self.steps is None:
            return super().execute(call)
        self.steps.before(call)
        return self.steps.after(call, super().execute(call))


def run(
    skeleton: Skeleton,
    example: Example,
    watched: Iterable[str],
    execution: Stepping | None = None,
    *,
    grad: bool = False,
) -> Results:
    """One forward pass of a stand-in in eval mode.

    Args:
        skeleton: the stand-in.
        example: what it is run on.
        watched: addresses of modules whose results are wanted; of several calls the last.
        execution: what runs the operations; the plain one, if left out.
        grad: whether to remember the way from tensors that ask for it.
    """
    model = skeleton.model.eval()
    seen: dict[str, torch.Tensor] = {}

    def note(address: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[address] = next(tensor for _, tensor in tensors(output)).clone()

        return hook

    execution = execution or Stepping(skeleton)
    steps = execution.steps
    with contextlib.ExitStack() as stack:
        for address in watched:
            handle = tree.get_module(model, address).register_forward_hook(note(address))
            stack.callback(handle.remove)
        stack.enter_context(kept(skeleton.originals))
        stack.enter_context(contextlib.closing(execution))
        stack.enter_context(torch.set_grad_enabled(grad))
        if steps is not None:
            # What the recording on meta has: other devices have attention in one piece.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(execution)
        output = example.call(model)
    if steps is None:
        return Results(dict(tensors(output)), seen)
    steps.close()
    return Results(dict(tensors(output)), seen, steps.seen, steps.edges)


class Settling(Stepping):  # type: ignore[no-untyped-call]
    """Runs everything, and brings the statistics of each normalisation near what it is given.

    With others the signal grows or shrinks from block to block, until gates are shut, activations
    saturate, and what follows no longer depends on what was before.

    Args:
        skeleton: a stand-in; the statistics of its normalisations are written.
        generator: a random part stays, so that no statistic holds one value throughout.
        steps: what to note and to put in, or None.
    """

    def __init__(
        self, skeleton: Skeleton, generator: torch.Generator, steps: Steps | None = None
    ) -> None:
        super().__init__(skeleton, steps)
        self.generator = generator
        buffers = tree.index(skeleton.model).of_kind("buffer")
        self.waiting = {entry.tensor.untyped_storage()._cdata for entry in buffers}

    def execute(self, call: Call) -> Any:
        """Run one operation, a normalisation after its statistics were set."""
        if call.func._schema.name.removeprefix("aten::") in _NORMALISATIONS and not any(
            tensor.is_meta for tensor in call.given
        ):
            self._settle(call)
        return super().execute(call)

    def _settle(self, call: Call) -> None:
        data, mean, variance = (argument_at(call.args, call.kwargs, n) for n in (0, 3, 4))
        if not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
            return
        storages = {each.untyped_storage()._cdata for each in (mean, variance)}
        if not storages <= self.waiting:
            return
        self.waiting -= storages
        axes = [axis for axis in range(data.dim()) if axis != 1]
        drawn = [torch.rand(mean.shape, generator=self.generator).to(data) for _ in range(2)]
        spread = data.var(axes, correction=0)
        # Of one number there is no spread: all features together have one.
        spread = torch.where(spread > 0, spread, data.var(correction=0))
        if bool(torch.isfinite(spread).all()) and bool((spread > 0).all()):
            mean.copy_(data.mean(axes) + (drawn[0] - 0.5) * spread.sqrt())
            variance.copy_(spread * (drawn[1] + 0.5))


_NORMALISATIONS = frozenset(
    {"batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}
)


def workplace(
    models: tuple[nn.Module, nn.Module], shared: Container[str]
) -> tuple[torch.dtype, torch.device]:
    """What both are compared in, and where: in double precision if memory allows.

    Args:
        models: donor and recipient.
        shared: addresses of the recipient's tensors that get the donor's as they are.
    """
    device = _device_of(models[1])
    if device.type == "mps":
        # It has no double precision.
        device = torch.device("cpu")
    wanted = 8 * sum(
        entry.tensor.numel()
        for place, model in enumerate(models)
        for entry in tree.index(model).of_kind("parameter", "buffer")
        if place == 0 or entry.address not in shared
    )
    return torch.float64 if wanted < free_memory(device) // 2 else torch.float32, device


def free_memory(device: torch.device) -> int:
    """How many bytes a device has left; more than there are where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError, IndexError):
        told = Path("/proc/meminfo").read_text("ascii")
        return 1024 * int(told.split("MemAvailable:")[1].split()[0])
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def _device_of(model: nn.Module) -> torch.device:
    return next((e.tensor.device for e in tree.index(model).tensors.values()), torch.device("cpu"))


def draw_inputs(
    twins: Twins, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> tuple[Example, Example]:
    """One random input in both forms: the same tensors in the same order, as far as they fit.

    Args:
        twins: the models, with examples of what they take.
        dtype: of what is floating.
        device: where it is to be.
        generator: what it is drawn from.
    """
    limits = [_tables(graph) for graph in twins.graphs]
    drawn: list[list[torch.Tensor]] = [[], []]

    def fresh(tensor: torch.Tensor, place: int) -> torch.Tensor:
        number = len(drawn[place])
        rows = [found[number] for found in limits if number in found]
        same = drawn[0][number] if place and number < len(drawn[0]) else None
        form = twins.forms.get(number) if place else None
        if same is not None and form is not None:
            made = same.flatten()[form.to(same.device)].view(tensor.shape)
        elif same is not None and same.shape == tensor.shape:
            made = same.clone()
        elif is_floating(tensor.dtype):
            made = torch.randn(tensor.shape, dtype=dtype, generator=generator)
        elif tensor.dtype == torch.int64 and rows:
            made = torch.randint(min(rows), tensor.shape, generator=generator)
        else:
            made = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.clone()
        drawn[place].append(made.to(device))
        return drawn[place][-1]

    first, second = (
        replaced(example, partial(fresh, place=place))
        for place, example in enumerate(twins.examples)
    )
    return first, second


def replaced(example: Example, new: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """An example with other tensors."""
    return replace(
        example,
        args=tuple(replace_tensors(value, new) for value in example.args),
        kwargs={name: replace_tensors(value, new) for name, value in example.kwargs.items()},
        train=None,
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


def convert(model: nn.Module, dtype: torch.dtype, device: torch.device, *, copy: bool) -> None:
    """Bring a stand-in to one precision; the model that it stands for is not touched.

    Args:
        model: the stand-in.
        dtype: of what is floating.
        device: where it is to be.
        copy: give it memory of its own, also where it could go on in that of the model.
    """
    for entry in list(tree.index(model).tensors.values()):
        tensor = entry.tensor.detach()
        if is_floating(tensor.dtype) and not tensor.is_meta:
            made = tensor.to(device, dtype, copy=copy, memory_format=torch.preserve_format)
            _put(model, entry, made.contiguous() if copy else made)


def randomise(
    model: nn.Module,
    side: Canonical,
    generator: torch.Generator,
    gain: float = GAINS[0],
    only: Container[str] | None = None,
) -> None:
    """Give every tensor that an operation has random numbers that carry signals through.

    Args:
        model: a stand-in with memory of its own; it is written.
        side: its cells.
        generator: where they are drawn from.
        gain: how much more comes out of a product than goes in, before the activation.
        only: addresses of those to draw; None for all.
    """
    entries = {e.address: e for e in tree.index(model).of_kind("parameter", "buffer")}
    with torch.no_grad():
        for cell in side.cells:
            for slot in cell.slots:
                entry = entries.get(slot.piece.address)
                if entry is None or (only is not None and entry.address not in only):
                    continue
                if is_floating(entry.tensor.dtype):
                    place = slot.piece.of(entry.tensor)
                    place.copy_(_drawn(cell, slot, place.shape, generator, gain))


def vacate(model: nn.Module, found: Correspondence) -> None:
    """Zero what has no place in the recipient: there it computes as with zeros.

    Args:
        model: a stand-in of the donor with memory of its own; it is written.
        found: what belongs where.
    """
    entries = {e.address: e for e in tree.index(model).of_kind("parameter", "buffer")}
    with torch.no_grad():
        for pair in found.pairs:
            if not pair.recipient:
                pair.theirs.of(entries[pair.donor].tensor).zero_()


def _drawn(
    cell: Cell, slot: Slot, shape: torch.Size, generator: torch.Generator, gain: float
) -> torch.Tensor:
    """Random numbers for one slot: positive where a variance, a scale or a value must be."""
    if slot.role.startswith(("bias", "mean")):
        return torch.randn(shape, dtype=torch.float64, generator=generator) / 10
    if cell.kind == "product":
        size = gain / math.sqrt(max(math.prod(slot.shape[1:]), 1))
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
