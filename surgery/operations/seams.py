"""Where two models that differ begin to be the same again, and how far they stay the same.

A cell is common where what flows into it comes from common cells. Behind a stem, a table or a
layer that only one of the two has in this size, nothing would be. There a seam lets them begin
anew: whatever the cells in front of it make, both models go on with the donor's result.

A seam has to have a reason: on each side on which what leads there is not common, a tensor without
counterpart stands behind it, or an input of another shape. Two operations that read something else
without such a reason are a difference, and no seam hides it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from surgery.graph.align import Alignment, passed
from surgery.graph.aten import packet
from surgery.graph.canonical import Canonical, Cell
from surgery.graph.pieces import MOVES, Piece
from surgery.operations.correspondence import Correspondence

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Common:
    """The part of two graphs that can be compared.

    Attributes:
        cells: the donor's cells, each with the recipient's that is the same.
        seams: cells of donor and recipient after which both go on with one value.
        broken: pairs of cells with tensors that read something else without a reason.
    """

    cells: dict[int, int]
    seams: tuple[Pair, ...] = ()
    broken: tuple[Pair, ...] = ()


def common_part(
    alignment: Alignment,
    correspondence: Correspondence,
    *,
    seams: bool = True,
    joins: bool = True,
) -> Common:
    """Find the common part of two graphs.

    Args:
        alignment: of the graphs.
        correspondence: which tensors go where.
        seams: begin anew behind what differs; else only what begins at the inputs is common.
        joins: also where something common and something else are added; else behind that.
    """
    return _Search(alignment, correspondence, seams, joins).run()


@dataclass(eq=False)
class _Search:
    alignment: Alignment
    correspondence: Correspondence
    allowed: bool
    joins: bool
    found: dict[int, int] = field(default_factory=dict)
    back: dict[int, int] = field(default_factory=dict)
    seams: dict[int, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    broken: list[Pair] = field(default_factory=list)
    paired: dict[int, int] = field(default_factory=dict)
    unlike: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    placed: tuple[set[Piece], set[Piece]] | None = None

    def run(self) -> Common:
        """Go through the donor's cells in order."""
        self.paired = dict(self.alignment.pairs)
        self.unlike = self.reasons()
        for number, cell in enumerate(self.alignment.one.cells):
            two = self.paired.get(number)
            if two is None or number in self.unlike[0] or two in self.unlike[1]:
                continue
            begun = self.begun(number, two)
            if begun is not None:
                self.found[number], self.back[two] = two, number
                self.seams.update(begun)
                self.taken.update((b, a) for a, b in begun.items())
            elif self.allowed and _held(cell) and not self.reasoned(number, two):
                self.broken.append((number, two))
        return Common(self.found, tuple(self.seams.items()), tuple(self.broken))

    def reasons(self) -> tuple[set[int], set[int]]:
        """The cells of both that have no counterpart with the same tensors, or another input."""
        sides, parts = (self.alignment.one, self.alignment.other), self.correspondence.parts
        found: tuple[set[int], set[int]] = (set(), set())
        for place, paired in enumerate((self.paired, set(self.paired.values()))):
            found[place].update(
                number
                for number, cell in enumerate(sides[place].cells)
                if number not in paired and (cell.kind == "input" or self.homeless(place, cell))
            )
        for one, two in self.paired.items():
            cell, twin = sides[0].cells[one], sides[1].cells[two]
            lacking = any(s.piece.address and s.piece.address not in parts for s in twin.slots)
            if cell.kind == "input":
                nodes = sides[0].graph.nodes[cell.node], sides[1].graph.nodes[twin.node]
                lacking = nodes[0].outputs[0].shape != nodes[1].outputs[0].shape
                lacking = lacking and twin.node not in self.alignment.formed
            if lacking or cell.shape != twin.shape:
                found[0].add(one)
                found[1].add(two)
        return found

    def homeless(self, place: int, cell: Cell) -> bool:
        """Whether a cell without a counterpart has a weight without one.

        One whose weight goes somewhere else applies it once more: that is another way and no
        other depth, and a bias of its own does not change that.
        """
        found = self.correspondence
        pairs = (pair for pairs in found.parts.values() for pair in pairs)
        if self.placed is None:
            both = [(pair.theirs, pair.ours) for pair in pairs if pair.donor]
            self.placed = {theirs for theirs, _ in both}, {ours for _, ours in both}
        used = (found.donor, found.recipient)[place].used
        whole = set[str]()
        for address in {slot.piece.address for slot in cell.slots if slot.piece.address}:
            done = sum(each.numel for each in self.placed[place] if each.address == address)
            whole |= {address} if done >= used.get(address, 0) else set()
        held = [slot for slot in cell.slots if slot.piece.address]
        first = [slot for slot in held if slot.role.startswith("weight")] or held
        return any(
            slot.piece.address not in whole and slot.piece not in self.placed[place]
            for slot in first
        )

    def begun(self, one: int, two: int) -> dict[int, int] | None:
        """The seams that make two cells the same; None where they read something else."""
        mine, theirs = self.open(one, two)
        if len(mine) != len(theirs):
            return None
        if (mine or theirs) and not self.allowed:
            return None
        cell = self.alignment.one.cells[one]
        if not cell.ordered:
            for place, numbers in enumerate((mine, theirs)):
                cells = (self.alignment.one, self.alignment.other)[place].cells
                numbers.sort(key=lambda number, of=cells: of[number].kind)  # type: ignore[misc]
        made: dict[int, int] = {}
        for pair in zip(mine, theirs, strict=True):
            known = self.seams.get(pair[0]) == pair[1]
            fresh = pair[0] not in self.seams and pair[1] not in self.taken
            fresh = fresh and (self.joins or cell.kind != "join")
            if not known and not (fresh and self.meets(one, *pair) and self.seam(one, *pair)):
                return None
            made[pair[0]] = pair[1]
        return made if len(set(made.values())) == len(made) else None

    def open(self, one: int, two: int) -> tuple[list[int], list[int]]:
        """What flows into two cells and is not common."""
        into = [stream.cell for stream in self.alignment.one.cells[one].streams]
        theirs = [stream.cell for stream in self.alignment.other.cells[two].streams]
        met = {self.found[n] for n in into if n in self.found} & set(theirs)
        return (
            list(dict.fromkeys(n for n in into if self.found.get(n) not in met)),
            list(dict.fromkeys(n for n in theirs if n not in met)),
        )

    def meets(self, reader: int, one: int, two: int) -> bool:
        """Whether what flows into a join from two cells may be the same at all.

        A sum of two branches is not the same sum where one of them is the block before.
        """
        if self.alignment.one.cells[reader].kind != "join":
            return True
        sides = self.alignment.one, self.alignment.other
        kinds = [side.cells[n].kind for side, n in zip(sides, (one, two), strict=True)]
        ways = [
            {passed(side, s) for s in side.cells[at].streams if s.cell == number}
            for side, at, number in zip(
                sides, (reader, self.paired[reader]), (one, two), strict=True
            )
        ]
        return kinds[0] == kinds[1] or bool(ways[0] & ways[1])

    def seam(self, reader: int, one: int, two: int) -> bool:
        """Whether both models may go on with one value behind two cells."""
        sides = self.alignment.one, self.alignment.other
        cells = sides[0].cells[one], sides[1].cells[two]
        if (one in self.found and two in self.back) or self.crossed(reader, one, two):
            return False
        if one not in self.found and not self.excused(0, one):
            return False
        if two not in self.back and not self.excused(1, two):
            return False
        if all(each.kind == "join" for each in cells) and cells[0].name != cells[1].name:
            return False
        if "value" in (cells[0].kind, cells[1].kind):
            bare = (
                cells[0].kind == cells[1].kind and len(cells[0].slots) == len(cells[1].slots) == 1
            )
            return bare and one not in self.found and two not in self.back
        made = value_of(sides[0], one)
        if two in self.back:
            before = value_of(sides[0], self.back[two])
            return made is not None and before is not None and before < made
        # An input of another shape is none to go on with.
        whole = one in self.found or cells[0].kind != "input"
        return whole and made is not None and produced(sides[1], two) is not None

    def crossed(self, reader: int, one: int, two: int) -> bool:
        """Whether one of two cells belongs to another of the other model, as far as is known."""
        partner = next((a for a, b in self.paired.items() if b == two), one)
        if partner != one and (
            partner > reader
            or (
                partner not in self.found
                and _held(self.alignment.other.cells[two])
                and two not in self.unlike[1]
            )
        ):
            return True
        held = _held(self.alignment.one.cells[one]) and one not in self.unlike[0]
        return held and one not in self.found and self.paired.get(one, two) != two

    def reasoned(self, one: int, two: int) -> bool:
        """Whether two cells that are not the same have a reason for it behind them."""
        return self.excused(0, one) or self.excused(1, two)

    def excused(self, place: int, number: int) -> bool:
        """Whether a tensor without counterpart stands behind a cell, nothing common between."""
        side = (self.alignment.one, self.alignment.other)[place]
        common: Container[int] = (self.found, self.back)[place]
        pending, seen = [number], set[int]()
        while pending:
            each = pending.pop()
            if each in seen or each in common:
                continue
            seen.add(each)
            if each in self.unlike[place]:
                return True
            pending += [stream.cell for stream in side.cells[each].streams]
        return False


def _held(cell: Cell) -> bool:
    return any(slot.piece.address for slot in cell.slots)


def value_of(side: Canonical, number: int) -> int | None:
    """The node that returns what a cell makes, or that is an input; or None."""
    cell = side.cells[number]
    return cell.node if cell.kind == "input" else produced(side, number)


def produced(side: Canonical, number: int) -> int | None:
    """The node that returns what a cell makes, or None where none does.

    A bias or a shift may be added in an operation of its own.
    """
    cell, graph = side.cells[number], side.graph
    if cell.kind in ("input", "value") or any(
        other.node == cell.node and place != number and (place > number or cell.kind != "join")
        for place, other in enumerate(side.cells)
        if other.kind != "value"
    ):
        return None
    own = {slot.piece.address for slot in cell.slots}
    others = {other.node for place, other in enumerate(side.cells) if place != number}
    result = current = cell.node
    while len(graph.users[current]) == 1:
        (following,) = graph.users[current]
        node = graph.nodes[following]
        if packet(node.operation) in MOVES:
            current = following
        elif following not in others and own & {a for names in node.parameters for a in names}:
            result = current = following
        else:
            break
    return result


def ends_of(alignment: Alignment, common: Common) -> Iterator[Pair]:
    """The common cells that something else than the common part goes on with, or nothing.

    Everything that a common cell says is said by these: whatever it moves, it moves one of them.
    """
    one, other = alignment.one, alignment.other
    inner = {stream.cell for number in common.cells for stream in one.cells[number].streams}
    outer = {s.cell for n, c in enumerate(one.cells) if n not in common.cells for s in c.streams}
    same = set(common.cells.values())
    outer_too = {s.cell for n, c in enumerate(other.cells) if n not in same for s in c.streams}
    sources = {a for a, _ in common.seams}, {b for _, b in common.seams}
    for a, b in sorted(common.cells.items()):
        on = a in outer or b in outer_too or a in sources[0] or b in sources[1]
        if on or a not in inner:
            yield a, b


def regions_of(alignment: Alignment, common: Common) -> dict[int, int]:
    """A number for each connected piece of the common part, by the donor's cell.

    Pieces that begin at the inputs all have the number -1.
    """
    place = {number: number for number in common.cells}

    def root(number: int) -> int:
        while place[number] != number:
            number = place[number]
        return number

    seamed: set[int] = set()
    for number, twin in common.cells.items():
        theirs = {stream.cell for stream in alignment.other.cells[twin].streams}
        for stream in alignment.one.cells[number].streams:
            if common.cells.get(stream.cell) in theirs:
                place[root(number)] = root(stream.cell)
            else:
                seamed.add(number)
    begun = {root(number) for number in seamed}
    return {number: root(number) if root(number) in begun else -1 for number in common.cells}
