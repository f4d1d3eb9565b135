"""Where the boxes of a drawing stand and how the lines between them run.

The layers are those of the longest path, igraph's Sugiyama layout finds the order within each that
crosses the fewest lines, and the boxes then move, in that order, as near to what they are joined
with as their sizes allow. A line that passes a layer gets a place of its own there, so that no
line runs through a box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]

_GAP_ACROSS = 36.0
_GAP_BESIDE_LINE = 18.0
_GAP_DOWN = 44.0
_FRAME_TOP = 32.0
_FRAME_SIDE = 14.0
_FRAME_BOTTOM = 24.0
# How much a line wants to be straight: most where it only passes by, least where it turns off.
_PULL_BOX, _PULL_END, _PULL_PASSING = 4.0, 1.0, 8.0
_SWEEPS = 24
_STRAIGHTENED = 4
_SPREAD = 22.0


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box: its left upper corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The x of its right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The y of its lower side."""
        return self.y + self.height

    @property
    def centre(self) -> float:
        """The x of its middle."""
        return self.x + self.width / 2

    def meets(self, other: Rectangle) -> bool:
        """Whether the two have an area in common."""
        return (
            self.x < other.right
            and other.x < self.right
            and self.y < other.bottom
            and other.y < self.bottom
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes, lines and frames, all at positive coordinates.

    Attributes:
        boxes: in the order they were given in.
        routes: for each edge, points from the lower side of one box to the upper side of the
            other; between them, in pairs, where the line enters and leaves the layers it passes.
        frames: for each group of boxes its frame, or None where one would cut through another
            box.
        width: of everything.
        height: of everything.
    """

    boxes: tuple[Rectangle, ...]
    routes: tuple[tuple[Point, ...], ...]
    frames: tuple[Rectangle | None, ...]
    width: float
    height: float


def arrange(
    sizes: Sequence[tuple[float, float]],
    edges: Sequence[tuple[int, int]],
    groups: Sequence[frozenset[int]] = (),
) -> Layout:
    """Lay out a directed graph without cycles from top to bottom.

    Args:
        sizes: width and height of every box.
        edges: pairs of places in ``sizes``; the first of each is the smaller.
        groups: boxes to draw a frame around, the outer groups before those they contain.

    Returns:
        The layout. Equal for equal arguments, in every process; no random number is drawn.

    Example:
        >>> layout = arrange([(80, 20), (80, 20), (80, 20)], [(0, 1), (1, 2), (0, 2)])
        >>> [box.y for box in layout.boxes], len(layout.routes[2])
        ([0.0, 64.0, 128.0], 4)
    """
    if not sizes:
        return Layout((), (), (), 0.0, 0.0)
    layers = _layers(len(sizes), edges)
    net = _with_passages(layers, edges)
    rows = _ordered(net)
    inside = _inside(net, edges, groups)
    widths = [size[0] for size in sizes] + [0.0] * (net.size - len(sizes))
    across = _across(net, rows, widths, inside)
    tops, heights = _down(rows, sizes, groups, inside, net.layers)
    boxes = tuple(
        Rectangle(
            across[v] - width / 2,
            tops[net.layers[v]] + (heights[net.layers[v]] - height) / 2,
            width,
            height,
        )
        for v, (width, height) in enumerate(sizes)
    )
    passing = [
        Rectangle(across[v], tops[net.layers[v]], 0.0, heights[net.layers[v]])
        for v in range(len(sizes), net.size)
    ]
    frames = _frames(boxes, passing, groups, inside)
    routes = _routes(net, edges, boxes, across, tops, heights)
    return _at_origin(boxes, routes, frames)


@dataclass(frozen=True, slots=True)
class _Net:
    """The graph with a vertex wherever a line passes a layer: every edge goes one layer down."""

    layers: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    passages: tuple[tuple[int, ...], ...]
    boxes: int

    @property
    def size(self) -> int:
        return len(self.layers)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The longest way to each box; what nothing leads to stands right above where it leads."""
    layers = [0] * count
    ahead: dict[int, list[int]] = {}
    entered = set()
    for source, target in sorted(edges):
        ahead.setdefault(source, []).append(target)
        entered.add(target)
    for source in range(count):
        for target in ahead.get(source, ()):
            layers[target] = max(layers[target], layers[source] + 1)
    for source in range(count):
        if source in ahead and source not in entered:
            layers[source] = min(layers[target] for target in ahead[source]) - 1
    lowest = min(layers)
    return [layer - lowest for layer in layers]


def _with_passages(layers: Sequence[int], edges: Sequence[tuple[int, int]]) -> _Net:
    """Lines of one box share their way until they part."""
    places = list(layers)
    found: dict[tuple[int, int], int] = {}
    joined: dict[tuple[int, int], None] = {}
    passages = []
    for source, target in edges:
        way = []
        for layer in range(layers[source] + 1, layers[target]):
            if (source, layer) not in found:
                found[source, layer] = len(places)
                places.append(layer)
            way.append(found[source, layer])
        joined |= dict.fromkeys(zip((source, *way), (*way, target), strict=True))
        passages.append(tuple(way))
    return _Net(tuple(places), tuple(joined), tuple(passages), len(layers))


def _ordered(net: _Net) -> list[list[int]]:
    """The vertices of every layer from left to right."""
    import igraph

    graph = igraph.Graph(n=net.size, edges=list(net.edges), directed=True)
    found = graph.layout_sugiyama(layers=list(net.layers), hgap=1, vgap=1, maxiter=200)
    rows: list[list[int]] = [[] for _ in range(max(net.layers) + 1)]
    for vertex in range(net.size):
        rows[net.layers[vertex]].append(vertex)
    for row in rows:
        row.sort(key=lambda vertex: (found[vertex][0], vertex))
    # A mirror crosses the same lines: what comes first stands left, where people start to read.
    forward = sum((one < other) - (one > other) for row in rows for one, other in pairwise(row))
    return rows if forward >= 0 else [row[::-1] for row in rows]


def _across(
    net: _Net,
    rows: Sequence[Sequence[int]],
    widths: Sequence[float],
    inside: Sequence[frozenset[int]],
) -> list[float]:
    """The middle of every vertex: near to its neighbours, in the order of its row."""
    above: list[list[tuple[int, float]]] = [[] for _ in range(net.size)]
    below: list[list[tuple[int, float]]] = [[] for _ in range(net.size)]
    for source, target in net.edges:
        passing = (source >= net.boxes) + (target >= net.boxes)
        pull = (_PULL_BOX, _PULL_END, _PULL_PASSING)[passing]
        above[target].append((source, pull))
        below[source].append((target, pull))
    apart = [_apart(row, widths, inside, net.boxes) for row in rows]
    middles = [0.0] * net.size
    for row, needed in zip(rows, apart, strict=True):
        total = sum(needed)
        for vertex, place in zip(row, _running(needed), strict=True):
            middles[vertex] = place - total / 2
    for sweep in range(_SWEEPS):
        last = sweep >= _SWEEPS - 2
        down = sweep % 2 == 0
        for place in range(len(rows)) if down else reversed(range(len(rows))):
            seen = [
                (*above[v], *below[v]) if last else (above[v] if down else below[v])
                for v in rows[place]
            ]
            _settle(rows[place], apart[place], seen, middles)
    _straighten(net, rows, apart, middles)
    return middles


def _apart(
    row: Sequence[int], widths: Sequence[float], inside: Sequence[frozenset[int]], boxes: int
) -> list[float]:
    """For every vertex of a row, how far it is at least from the one before it."""
    needed = [0.0]
    for left, right in pairwise(row):
        lines = (left >= boxes) + (right >= boxes)
        gap = _GAP_ACROSS if lines == 0 else _GAP_BESIDE_LINE
        walls = len(inside[left] ^ inside[right]) * _FRAME_SIDE
        needed.append((widths[left] + widths[right]) / 2 + gap + walls)
    return needed


def _running(numbers: Iterable[float]) -> list[float]:
    total, sums = 0.0, []
    for number in numbers:
        total += number
        sums.append(total)
    return sums


def _settle(
    row: Sequence[int],
    needed: Sequence[float],
    seen: Sequence[Sequence[tuple[int, float]]],
    middles: list[float],
) -> None:
    """Move a row to where its neighbours draw it: least squares, by pooling adjacent violators."""
    offsets = _running(needed)
    # Each pool: the sum of the weights, of the weighted wishes, and how many vertices.
    pools: list[tuple[float, float, int]] = []
    for vertex, offset, neighbours in zip(row, offsets, seen, strict=True):
        weight = sum(pull for _, pull in neighbours)
        wish = (
            sum(middles[other] * pull for other, pull in neighbours) / weight
            if weight
            else middles[vertex]
        )
        weight = weight or 0.1
        pool = (weight, weight * (wish - offset), 1)
        while pools and pools[-1][1] / pools[-1][0] > pool[1] / pool[0]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    settled = [total / weight for weight, total, count in pools for _ in range(count)]
    for vertex, offset, place in zip(row, offsets, settled, strict=True):
        middles[vertex] = place + offset


def _straighten(
    net: _Net, rows: Sequence[Sequence[int]], apart: Sequence[Sequence[float]], middles: list[float]
) -> None:
    """Put what follows each other in one line exactly below each other, where there is room."""
    left: dict[int, tuple[int, float]] = {}
    right: dict[int, tuple[int, float]] = {}
    for row, needed in zip(rows, apart, strict=True):
        for (one, other), gap in zip(pairwise(row), needed[1:], strict=True):
            left[other], right[one] = (one, gap), (other, gap)
    lines = _lines(net)
    for _ in range(_STRAIGHTENED):
        for line in lines:
            least = [middles[left[v][0]] + left[v][1] for v in line if v in left]
            most = [middles[right[v][0]] - right[v][1] for v in line if v in right]
            low, high = max(least, default=-math.inf), min(most, default=math.inf)
            if low <= high:
                wish = sorted(middles[v] for v in line)[len(line) // 2]
                for v in line:
                    middles[v] = min(max(wish, low), high)


def _lines(net: _Net) -> list[list[int]]:
    """The vertices that follow each other and nothing else, and those that a line passes by."""
    ahead: dict[int, list[int]] = {}
    behind: dict[int, list[int]] = {}
    for source, target in net.edges:
        ahead.setdefault(source, []).append(target)
        behind.setdefault(target, []).append(source)
    following = {
        source: targets[0]
        for source, targets in ahead.items()
        if len(targets) == 1
        and len(behind[targets[0]]) == 1
        and (source < net.boxes) == (targets[0] < net.boxes)
    }
    starts = [v for v in following if v not in set(following.values())]
    found = []
    for vertex in starts:
        line = [vertex]
        while line[-1] in following:
            line.append(following[line[-1]])
        found.append(line)
    return found


def _down(
    rows: Sequence[Sequence[int]],
    sizes: Sequence[tuple[float, float]],
    groups: Sequence[frozenset[int]],
    inside: Sequence[frozenset[int]],
    layers: Sequence[int],
) -> tuple[list[float], list[float]]:
    """The upper side and the height of every layer, with room for frames that begin or end."""
    spans = [(min(layers[v] for v in group), max(layers[v] for v in group)) for group in groups]
    tops, heights = [], []
    reached = 0.0
    for layer, row in enumerate(rows):
        within = [inside[v] for v in row]
        begin = max(sum(spans[n][0] == layer for n in found) for found in within)
        end = max(sum(spans[n][1] == layer for n in found) for found in within)
        reached += begin * _FRAME_TOP
        tops.append(reached)
        heights.append(max((sizes[v][1] for v in row if v < len(sizes)), default=0.0))
        reached += heights[-1] + end * _FRAME_BOTTOM + _GAP_DOWN
    return tops, heights


def _inside(
    net: _Net, edges: Sequence[tuple[int, int]], groups: Sequence[frozenset[int]]
) -> list[frozenset[int]]:
    """The groups that each vertex is in: a line that passes is where both of its ends are."""
    found = [frozenset(n for n, group in enumerate(groups) if v in group) for v in range(net.boxes)]
    passing: dict[int, frozenset[int]] = {}
    for (source, target), way in zip(edges, net.passages, strict=True):
        both = found[source] & found[target]
        for vertex in way:
            passing[vertex] = passing.get(vertex, both) & both
    return found + [passing[vertex] for vertex in range(net.boxes, net.size)]


def _frames(
    boxes: Sequence[Rectangle],
    passing: Sequence[Rectangle],
    groups: Sequence[frozenset[int]],
    inside: Sequence[frozenset[int]],
) -> tuple[Rectangle | None, ...]:
    """Frames from the innermost out; none that meets a box which is not in it."""
    frames: list[Rectangle | None] = [None] * len(groups)
    for place in reversed(range(len(groups))):
        group = groups[place]
        held = [boxes[v] for v in group]
        held += [line for v, line in enumerate(passing, len(boxes)) if place in inside[v]]
        held += [f for f, g in zip(frames, groups, strict=True) if f is not None and g < group]
        left, top = min(box.x for box in held), min(box.y for box in held)
        right, bottom = max(box.right for box in held), max(box.bottom for box in held)
        frame = Rectangle(
            left - _FRAME_SIDE,
            top - _FRAME_TOP,
            right - left + 2 * _FRAME_SIDE,
            bottom - top + _FRAME_TOP + _FRAME_BOTTOM,
        )
        strangers = (box for v, box in enumerate(boxes) if v not in group)
        others = (f for f, g in zip(frames, groups, strict=True) if f is not None and not g & group)
        if not any(frame.meets(other) for other in (*strangers, *others)):
            frames[place] = frame
    return tuple(frames)


def _routes(
    net: _Net,
    edges: Sequence[tuple[int, int]],
    boxes: Sequence[Rectangle],
    across: Sequence[float],
    tops: Sequence[float],
    heights: Sequence[float],
) -> list[tuple[Point, ...]]:
    # Lines arrive side by side, in the order in which they come.
    arriving: dict[int, list[tuple[float, int]]] = {}
    for number, (source, target) in enumerate(edges):
        way = net.passages[number]
        arriving.setdefault(target, []).append((across[way[-1] if way else source], number))
    ends: dict[int, float] = {}
    for target, lines in arriving.items():
        step = min(_SPREAD, boxes[target].width / (len(lines) + 1))
        for place, (_, number) in enumerate(sorted(lines)):
            ends[number] = boxes[target].centre + (place - (len(lines) - 1) / 2) * step
    routes = []
    for number, (source, target) in enumerate(edges):
        points: list[Point] = [(boxes[source].centre, boxes[source].bottom)]
        for vertex in net.passages[number]:
            layer = net.layers[vertex]
            points.append((across[vertex], tops[layer]))
            points.append((across[vertex], tops[layer] + heights[layer]))
        points.append((ends[number], boxes[target].y))
        routes.append(tuple(points))
    return routes


def _at_origin(
    boxes: Sequence[Rectangle],
    routes: Sequence[Sequence[Point]],
    frames: Sequence[Rectangle | None],
) -> Layout:
    """Everything moved to positive coordinates, and those rounded."""
    shown = [*boxes, *filter(None, frames)]
    points = [point for route in routes for point in route]
    left = min([box.x for box in shown] + [x for x, _ in points])
    top = min([box.y for box in shown] + [y for _, y in points])

    def moved(box: Rectangle) -> Rectangle:
        return Rectangle(round(box.x - left, 1), round(box.y - top, 1), box.width, box.height)

    placed = tuple(moved(box) for box in boxes)
    framed = tuple(None if frame is None else moved(frame) for frame in frames)
    lines = tuple(tuple((round(x - left, 1), round(y - top, 1)) for x, y in r) for r in routes)
    everything = [*placed, *filter(None, framed)]
    return Layout(
        placed,
        lines,
        framed,
        max([box.right for box in everything] + [x for r in lines for x, _ in r]),
        max([box.bottom for box in everything] + [y for r in lines for _, y in r]),
    )
