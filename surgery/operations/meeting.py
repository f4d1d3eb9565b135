"""Where the results of two models meet: outputs that stand in the same place, or the last layers
that both have in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch

from surgery import tree
from surgery.graph.align import Alignment, passed
from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical, Cell, Stream
from surgery.graph.distinctions import Distinction
from surgery.graph.pieces import MOVES
from surgery.graph.skeleton import is_floating
from surgery.operations.correspondence import Correspondence
from surgery.operations.seams import Common, produced


def met(
    alignment: Alignment,
    same: Mapping[int, int],
    first: dict[str, torch.Tensor],
    second: dict[str, torch.Tensor],
) -> Iterator[tuple[str, str, torch.Tensor, int]]:
    """The outputs that stand in the same place and that everything behind is aligned for.

    Args:
        alignment: of the graphs.
        same: the cells of the common part.
        first: the donor's outputs by path.
        second: the recipient's.

    Returns:
        The donor's path of each, the recipient's, the recipient's numbers in the donor's shape, and
        the donor's cell that they come from.
    """
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
            yield end.path, path, candidates[path][1], end.stream.cell


def watched(alignment: Alignment, same: Mapping[int, int]) -> list[tuple[str, str]]:
    """Modules of donor and recipient in which the common part ends; none where it is all."""
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


def parted(alignment: Alignment, common: Common) -> list[Distinction]:
    """Where the two part though every tensor there has a counterpart, and tensors follow.

    A way around that only one has, a gate that reads something else: what follows is computed from
    something else, whatever its shapes. Depth, width and heads part two models at a tensor.

    Args:
        alignment: of the graphs.
        common: what they have in common.

    Returns:
        What stands in that place; nothing where a tensor without a counterpart does.
    """
    return list(dict.fromkeys(_reads(alignment, common, *pair) for pair in common.broken))


def _reads(alignment: Alignment, common: Common, one: int, two: int) -> Distinction:
    """What two cells read that should read the same."""
    mine = [stream.cell for stream in alignment.one.cells[one].streams]
    theirs = [stream.cell for stream in alignment.other.cells[two].streams]
    met = {common.cells[n] for n in mine if n in common.cells} & set(theirs)
    donor = [alignment.one.cells[n] for n in mine if common.cells.get(n) not in met]
    recipient = [alignment.other.cells[n] for n in theirs if n not in met]
    told = [" and ".join(dict.fromkeys(map(_title, c))) or "nothing" for c in (donor, recipient)]
    modules = [next((cell.module for cell in cells), "") for cells in (donor, recipient)]
    return Distinction(modules[0], modules[1], "", "", *told)


def _title(cell: Cell) -> str:
    """A cell in a word or two, for people."""
    held = dict.fromkeys(slot.piece.address for slot in cell.slots if slot.piece.address)
    return " ".join([cell.name or cell.kind, *held])


def cut(found: Correspondence) -> str:
    """The call for the part in common by itself, where it is a module; else empty.

    What stands in front of a common part feeds it with something else, and nothing can be compared.
    """
    sides = ("donor", found.read), ("recipient", found.parts)
    modules = [_around(addresses) for _, addresses in sides]
    if not any(modules):
        return ""
    told = [
        f"{name}.get_submodule({module!r})" if module else name
        for (name, _), module in zip(sides, modules, strict=True)
    ]
    return f"surgery.transplant({', '.join(told)}, match='graph')"


def _around(addresses: Iterable[str]) -> str:
    """The module that has all tensors of these addresses."""
    parts = [tree.split(address)[0].split(".") for address in addresses]
    same = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    return ".".join(names[0] for names in same)


def _unlike(alignment: Alignment, one: Stream, two: Stream) -> bool:
    """Whether two outputs of one cell went through different operations since."""
    return passed(alignment.one, one) != passed(alignment.other, two)


def _fitted(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor | None:
    """The second in the first one's shape, where they differ in axes of one entry alone."""
    if one.dtype != two.dtype:
        return None
    sizes = [[size for size in tensor.shape if size > 1] for tensor in (one, two)]
    return two.reshape(one.shape) if sizes[0] == sizes[1] else None


def _owner(side: Canonical, number: int) -> str | None:
    """The module that returns what a cell makes, or None.

    A module with the cell's tensors may go on with it: an activation, a way around.
    """
    cell = side.cells[number]
    owners = {tree.split(slot.piece.address)[0] for slot in cell.slots if slot.piece.address}
    if owners != {cell.module}:
        return None
    inside = f"{cell.module}." if cell.module else ""
    # A bias may be added in an operation of its own.
    made = produced(side, number)
    later = any(
        node.role == "operation"
        and (node.module == cell.module or node.module.startswith(inside))
        and packet(node.operation) not in MOVES
        for node in side.graph.nodes[(cell.node if made is None else made) + 1 :]
    )
    return None if later else cell.module
