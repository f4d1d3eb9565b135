"""Run two models on one random input, the one with the other's weights, and compare what comes out.

Neither model runs: skeletons of them do, in double precision. A tensor that holds one value
throughout (a fresh bias, statistics that nobody gathered, a scale that closes a branch) would hide
a wrong place, so it gets random values for this.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError
from surgery.graph.align import Alignment, passed
from surgery.graph.canonical import Canonical, Stream
from surgery.graph.example import Example
from surgery.graph.execute import RealExecution
from surgery.graph.graph import Graph
from surgery.graph.kept import kept
from surgery.graph.quiet import quiet
from surgery.graph.skeleton import Skeleton, build_skeleton, is_floating
from surgery.graph.structure import replace_tensors, tensors
from surgery.operations.align import Twins
from surgery.operations.correspondence import Correspondence

_SEED = 2147483659
# How much of the largest output a difference may be: rounding, and nothing else.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Proof:
    """What came out of two models with the same weights.

    Attributes:
        difference: the largest between two numbers.
        scale: the largest of the donor's numbers.
        dtype: what it was computed in.
        compared: the outputs that were compared, or, where the models differ further on, the
            modules.
        common: whether these are results in the middle of the models, where their common part
            ends.
        randomised: how many tensors got random values because they held one value throughout.
    """

    difference: float
    scale: float
    dtype: torch.dtype
    compared: tuple[str, ...]
    common: bool
    randomised: int

    @property
    def holds(self) -> bool:
        """Whether the numbers are equal within rounding; zeros alone prove nothing."""
        finite = math.isfinite(self.difference) and math.isfinite(self.scale)
        return finite and self.scale > 0 and self.difference <= _ROUNDING[self.dtype] * self.scale

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        what = ", ".join(self.compared[:4]) + (", ..." if len(self.compared) > 4 else "")
        where = f"in the middle ({what})" if self.common else what
        return (
            f"largest difference {self.difference:.2g} where the largest value is "
            f"{self.scale:.2g}, in {precision}: {where}"
        )


def prove(
    twins: Twins,
    correspondence: Correspondence,
    alignment: Alignment,
    prepare: Callable[[nn.Module], None],
) -> Proof | None:
    """Compare two models on one random input, the recipient with the donor's weights.

    Args:
        twins: the models and what they take.
        correspondence: which weight goes where.
        alignment: of their graphs.
        prepare: changes the recipient's stand-in first: settings that are to be the donor's.

    Returns:
        What came out; None where the two have no result in common.
    """
    watched = _watched(alignment, correspondence)
    dtype = _precision(twins.models)
    with quiet():
        generator = torch.Generator().manual_seed(_SEED)
        device = _device(twins.models[1])
        inputs = _inputs(twins, dtype, device, generator)
        donor = build_skeleton(twins.models[0], "real")
        wanted = {pair.donor for pair in correspondence.pairs}
        randomised = _converted(donor.model, dtype, device, wanted, generator)
        first = _Run(donor, inputs[0], [there for there, _ in watched]).results()
        recipient = build_skeleton(twins.models[1], "real")
        _filled(recipient.model, donor.model, correspondence, dtype, device)
        prepare(recipient.model)
        second = _Run(recipient, inputs[1], [here for _, here in watched]).results()
    pairs = list(_outputs(alignment, correspondence, first[0], second[0]))
    common = not pairs
    if common:
        pairs = [
            (here, first[1][there], second[1][here])
            for there, here in watched
            if there in first[1] and here in second[1]
        ]
    compared = [(name, _gap(a, b), _largest(a)) for name, a, b in pairs]
    if not compared:
        return None
    gaps = [gap for _, gap, _ in compared]
    return Proof(
        math.nan if any(map(math.isnan, gaps)) else max(gaps),
        max(scale for _, _, scale in compared),
        dtype,
        tuple(name for name, _, _ in compared),
        common,
        randomised,
    )


@dataclass(eq=False)
class _Run:
    """One forward pass of a skeleton, with what some of its modules returned."""

    skeleton: Skeleton
    example: Example
    watched: Sequence[str]

    def results(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The outputs by path, and what each watched module returned last."""
        model = self.skeleton.model.eval()
        seen: dict[str, torch.Tensor] = {}

        def note(address: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                seen[address] = next(tensor for _, tensor in tensors(output)).clone()

            return hook

        for address in self.watched:
            tree.get_module(model, address).register_forward_hook(note(address))
        execution = RealExecution(self.skeleton.stand_ins, None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(kept(self.skeleton.originals))
            stack.enter_context(contextlib.closing(execution))
            stack.enter_context(torch.no_grad())
            stack.enter_context(execution)
            output = self.example.call(model)
        return dict(tensors(output)), seen


def _precision(models: Iterable[nn.Module]) -> torch.dtype:
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


def _device(model: nn.Module) -> torch.device:
    return next((e.tensor.device for e in tree.index(model).tensors.values()), torch.device("cpu"))


def _inputs(
    twins: Twins, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> tuple[Example, Example]:
    """One random input in both forms: the same tensors in the same order."""
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

    first = _replaced(twins.examples[0], fresh)
    again = iter(drawn)
    return first, _replaced(twins.examples[1], lambda tensor: next(again).clone())


def _replaced(example: Example, new: Callable[[torch.Tensor], torch.Tensor]) -> Example:
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


def _converted(
    model: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    wanted: set[str],
    generator: torch.Generator,
) -> int:
    """Bring a stand-in to one precision; how many tensors got random values."""
    count = 0
    for entry in tree.index(model).tensors.values():
        tensor = entry.tensor
        if not is_floating(tensor.dtype) or tensor.is_meta:
            continue
        values = tensor.detach().to(device, dtype)
        if entry.address in wanted and values.numel() > 1 and _is_constant(values):
            noise = torch.rand(values.shape, dtype=dtype, generator=generator).to(device)
            values = values + noise / 2
            count += 1
        _put(model, entry, values)
    return count


def _is_constant(values: torch.Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _put(model: nn.Module, entry: tree.Entry, values: torch.Tensor) -> None:
    if entry.kind == "attribute":
        for address in entry.addresses:
            # One that is made anew at every forward follows by itself.
            with contextlib.suppress(AddressError):
                tree.put(model, address, values)
    else:
        entry.tensor.data = values


def _filled(
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


def _outputs(
    alignment: Alignment,
    correspondence: Correspondence,
    first: dict[str, torch.Tensor],
    second: dict[str, torch.Tensor],
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The outputs that stand in the same place and that everything behind is aligned for."""
    same = _settled(alignment, correspondence)
    waiting = list(alignment.other.ends)
    for end in alignment.one.ends:
        if end.stream is None or end.stream.cell not in same or end.path not in first:
            continue
        one = first[end.path]
        candidates = {
            other.path: (_unlike(alignment, end.stream, other.stream), fitted)
            for other in waiting
            if other.stream is not None
            and other.path in second
            and same[end.stream.cell] == other.stream.cell
            and (fitted := _fitted(one, second[other.path])) is not None
        }
        if candidates and is_floating(one.dtype):
            path = min(candidates, key=lambda each: candidates[each][0])
            waiting = [other for other in waiting if other.path != path]
            yield path, one, candidates[path][1]


def _unlike(alignment: Alignment, one: Stream, two: Stream) -> bool:
    """Whether two outputs of one cell went through different operations since."""
    return passed(alignment.one, one) != passed(alignment.other, two)


def _fitted(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor | None:
    """The second in the first one's shape, where they differ in axes of one entry alone."""
    if one.dtype != two.dtype:
        return None
    sizes = [[size for size in tensor.shape if size > 1] for tensor in (one, two)]
    return two.reshape(one.shape) if sizes[0] == sizes[1] else None


def _settled(alignment: Alignment, correspondence: Correspondence) -> dict[int, int]:
    """The donor's cells that the recipient has with the same tensors, and all behind them too."""
    paired, found = dict(alignment.pairs), dict[int, int]()
    for number, cell in enumerate(alignment.one.cells):
        if number not in paired:
            continue
        twin = alignment.other.cells[paired[number]]
        held = (slot.piece.address for slot in twin.slots)
        if cell.shape != twin.shape or any(a and a not in correspondence.parts for a in held):
            continue
        theirs = {stream.cell for stream in twin.streams}
        into = {stream.cell for stream in cell.streams}
        if into <= found.keys() and {found[source] for source in into} == theirs:
            found[number] = paired[number]
    return found


def _watched(alignment: Alignment, correspondence: Correspondence) -> list[tuple[str, str]]:
    """Modules of donor and recipient in which the common part ends."""
    same = _settled(alignment, correspondence)
    if len(same) == len(alignment.one.cells) == len(alignment.other.cells):
        return []
    further = {
        stream.cell
        for place, cell in enumerate(alignment.one.cells)
        for stream in cell.streams
        if place not in same
    }
    inner = {stream.cell for number in same for stream in alignment.one.cells[number].streams}
    pending = [n for n in same if n in further or n not in inner]
    found: dict[int, tuple[str, str]] = {}
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number in seen:
            continue
        seen.add(number)
        donor = _owner(alignment.one, number)
        recipient = _owner(alignment.other, same[number])
        if donor is not None and recipient is not None:
            found[number] = donor, recipient
        else:
            pending += [stream.cell for stream in alignment.one.cells[number].streams]
    return [found[number] for number in sorted(found)]


def _owner(side: Canonical, number: int) -> str | None:
    """The module that a cell is the whole of, or None."""
    cell = side.cells[number]
    owners = {tree.split(slot.piece.address)[0] for slot in cell.slots if slot.piece.address}
    return cell.module if owners == {cell.module} else None


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        if one.numel() != other.numel():
            return math.inf
        one, other = (tensor.flatten().sort().values for tensor in (one, other))
    return float((one - other).abs().max()) if one.numel() else 0.0


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
