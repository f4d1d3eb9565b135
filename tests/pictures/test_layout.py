"""Laws of the layout: whatever the graph, boxes keep apart and lines keep off them."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.pictures.layout import Layout, Rectangle, arrange

Graph = tuple[list[tuple[float, float]], list[tuple[int, int]], list[frozenset[int]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Boxes of many sizes, edges from earlier to later ones, nested stretches as groups."""
    count = draw(st.integers(1, 14))
    sizes = draw(
        st.lists(
            st.tuples(st.integers(20, 300), st.integers(10, 80)), min_size=count, max_size=count
        )
    )
    pairs = list(combinations(range(count), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=30)) if pairs else []
    cuts = draw(st.lists(st.integers(0, count), max_size=4))
    groups = [frozenset(range(low, high)) for low, high in pairwise(sorted({*cuts}))]
    groups = [frozenset(range(count)), *groups]
    nested = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    return [(float(w), float(h)) for w, h in sizes], edges, nested


@given(graphs())
def test_boxes_keep_apart_and_inside(graph: Graph):
    sizes, edges, groups = graph
    layout = arrange(sizes, edges, groups)
    assert [(box.width, box.height) for box in layout.boxes] == sizes
    assert not any(one.meets(other) for one, other in combinations(layout.boxes, 2))
    for box in (*layout.boxes, *filter(None, layout.frames)):
        assert box.x >= 0
        assert box.y >= 0
        assert box.right <= layout.width + 0.2
        assert box.bottom <= layout.height + 0.2


@given(graphs())
def test_lines_run_down_from_border_to_border_and_through_no_box(graph: Graph):
    sizes, edges, groups = graph
    layout = arrange(sizes, edges, groups)
    for (source, target), route in zip(edges, layout.routes, strict=True):
        (x, y), (to_x, to_y) = route[0], route[-1]
        above, below = layout.boxes[source], layout.boxes[target]
        assert y == pytest.approx(above.bottom, abs=0.2)
        assert to_y == pytest.approx(below.y, abs=0.2)
        assert x == pytest.approx(above.centre, abs=0.2)
        assert below.x <= to_x <= below.right
        assert all(one[1] <= other[1] + 0.2 for one, other in pairwise(route))
        # Between two layers there is no box; through a layer a line runs straight down.
        for (left, upper), (right, lower) in pairwise(route[1:-1]):
            if left == right:
                column = Rectangle(left - 0.1, upper, 0.2, lower - upper)
                assert not any(box.meets(column) for box in layout.boxes)


@given(graphs())
def test_a_frame_holds_its_boxes_and_no_other(graph: Graph):
    sizes, edges, groups = graph
    layout = arrange(sizes, edges, groups)
    for group, frame in zip(groups, layout.frames, strict=True):
        if frame is not None:
            inside = {place for place, box in enumerate(layout.boxes) if frame.meets(box)}
            assert inside == group


def test_what_is_one_stretch_of_a_chain_gets_its_frame():
    layout = arrange([(80, 20)] * 4, [(0, 1), (1, 2), (2, 3)], [frozenset({1, 2})])
    assert layout.frames[0] is not None
    assert len({box.x for box in layout.boxes}) == 1, "a chain is straight"


@given(graphs())
def test_the_same_graph_gives_the_same_layout_and_draws_no_random_number(graph: Graph):
    states = random.getstate(), torch.get_rng_state()
    assert arrange(*graph) == arrange(*graph)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_nothing_is_laid_out_as_nothing():
    assert arrange([], []) == Layout((), (), (), 0.0, 0.0)


def test_what_comes_first_stands_left():
    # The order that crosses the fewest lines may come out either way around.
    for edges in ([(0, 4), (1, 2), (3, 4)], [(0, 5), (1, 2), (1, 3), (1, 5), (3, 4)]):
        count = 1 + max(target for _, target in edges)
        boxes = arrange([(80, 20)] * count, edges).boxes
        rows: dict[float, list[float]] = {}
        for box in boxes:
            rows.setdefault(box.y, []).append(box.x)
        ahead = sum(a < b for row in rows.values() for a, b in pairwise(row))
        behind = sum(a > b for row in rows.values() for a, b in pairwise(row))
        assert ahead >= behind
