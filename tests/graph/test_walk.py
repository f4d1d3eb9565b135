"""The walk back: what mixes features, what is nearest, what feeds what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.graph.example import Example
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.record import record_graph
from surgery.graph.walk import Mixing, ancestors, feeding, frontier, mixing, weight_sources
from tests.strategies import HOSTILE, Hostile, hostile_models, rename, renamings

every = pytest.mark.parametrize("truth", HOSTILE, ids=str)


class Uses(nn.Module):
    """One parameter, and what is done with it."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.use = nn.Parameter(torch.randn(shape)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


def recorded(model: nn.Module, *given: Tensor) -> Graph:
    return record_graph(model, Example(given), train=False)


def of(truth: Hostile) -> Graph:
    return record_graph(truth.make(), Example.of(truth.example()), train=False)


def last(graph: Graph) -> Ref:
    source = graph.leaves[-1].source
    assert source is not None
    return source


def mixings(graph: Graph) -> list[Mixing]:
    return [found for node in graph.nodes if (found := mixing(graph, node)) is not None]


# What makes 5 (or 7) features of 8, and where the features are in its result.
USES = {
    "linear": (lambda x, w: F.linear(x, w), (5, 8), 1),
    "matmul": (lambda x, w: x @ w.t(), (5, 8), 1),
    "turned": (lambda x, w: w @ x.t(), (5, 8), 0),
    "vectors": (lambda x, w: torch.stack([w @ row for row in x]), (5, 8), 1),
    "batched": (lambda x, w: (x.unsqueeze(1) @ w.t().expand(2, 8, -1)).squeeze(1), (5, 8), 1),
    "baddbmm": (
        lambda x, w: torch.baddbmm(x.new_zeros(1, 1, 1), x[:, None], w.t().expand(2, 8, -1))[:, 0],
        (5, 8),
        1,
    ),
    "addmm": (lambda x, w: torch.addmm(x.new_zeros(1), x, w.t()), (5, 8), 1),
    "einsum": (lambda x, w: torch.einsum("bf,cf->cb", x, w), (5, 8), 0),
    "tensordot": (lambda x, w: torch.tensordot(x, w, ([1], [1])), (5, 8), 1),
    "convolution": (lambda x, w: F.conv1d(x[..., None], w[..., None])[..., 0], (5, 8), 1),
    "cdist": (lambda x, w: torch.cdist(x, w), (5, 8), 1),
    "product": (lambda x, w: (x[:, None] * w).sum(-1), (5, 8), 1),
    "difference": (lambda x, w: (x[:, None] - w).norm(dim=-1), (5, 8), 1),
    "normed": (lambda x, w: F.normalize(x) @ F.normalize(w).t(), (5, 8), 1),
    "bilinear": (lambda x, w: F.bilinear(x, x, w[:, :, None].expand(-1, 8, 8)), (5, 8), 1),
    "outer": (lambda x, w: x.sum(1, keepdim=True) * w.sum(1), (5, 8), 1),
}


def with_size(name: str, size: int) -> Graph:
    use, shape, _ = USES[name]
    return recorded(Uses(use, size, *shape[1:]), torch.randn(2, 8))


@pytest.mark.parametrize("name", USES)
def test_the_new_features_are_where_a_twin_has_more_of_them(name: str) -> None:
    one, two = with_size(name, 5), with_size(name, 7)
    leaf, twin = one.leaves[0], two.leaves[0]
    changed = [a for a, n in enumerate(leaf.spec.shape) if n != twin.spec.shape[a]]
    assert changed == [USES[name][2]]
    found = frontier(one, last(one))
    assert {mixed.features for mixed in found} == {5}
    assert {mixed.features for mixed in frontier(two, last(two))} == {7}
    for mixed in found:
        shape = one.spec(mixed.value).shape
        assert mixed.axis == len(shape) or shape[mixed.axis] == 5
        assert [s.addresses for s in weight_sources(one, mixed.weight)] == [("weight",)]


@pytest.mark.parametrize("name", [n for n in USES if n not in ("outer", "batched", "baddbmm")])
def test_each_is_made_from_eight_features(name: str) -> None:
    graph = with_size(name, 5)
    assert {mixed.in_features for mixed in frontier(graph, last(graph))} == {8}


@pytest.mark.parametrize(
    ("use", "shape"),
    [
        (lambda x, w: x + w, (8,)),
        (lambda x, w: x * w, (1, 8)),
        (lambda x, w: (x * w).sum(0), (1, 8)),
        (lambda x, w: F.layer_norm(x, (8,), w), (8,)),
        (lambda x, w: F.prelu(x, w), (8,)),
        (lambda x, w: x / w, (1,)),
        (lambda x, w: torch.where(w > 0, x, -x), (8,)),
        (lambda x, w: x @ x.t() + w.sum(), (8,)),
        (lambda x, w: F.batch_norm(x, w, w.exp(), w, w), (8,)),
        (lambda x, w: x[:, w.argsort()], (8,)),
    ],
)
def test_what_makes_no_new_features_is_passed_through(
    use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    graph = recorded(Uses(use, *shape), torch.randn(2, 8))
    assert mixings(graph) == []
    assert frontier(graph, last(graph)) == ()


def test_weights_alone_are_no_data() -> None:
    """A product of two parameters is part of the weight, not a layer of its own."""
    model = Uses(lambda x, w: F.linear(x, w @ w.t() @ w), 5, 8)
    graph = recorded(model, torch.randn(2, 8))
    (found,) = mixings(graph)
    assert found.features == 5
    assert not graph.nodes[found.weight.node].depends_on_input


def test_the_sources_of_a_weight_are_all_it_is_computed_from() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5))
    graph = recorded(layer.eval(), torch.randn(2, 8))
    (found,) = frontier(graph, last(graph))
    roles = {s.addresses[0]: s.role for s in weight_sources(graph, found.weight)}
    assert roles == {
        "parametrizations.weight.original": "parameter",
        "parametrizations.weight.0._u": "buffer",
        "parametrizations.weight.0._v": "buffer",
    }


def _back(graph: Graph, start: int, stop: set[int]) -> set[int]:
    """Every node behind one, without going past some; itself included."""
    seen, pending = set(), [start]
    while pending:
        index = pending.pop()
        if index not in seen:
            seen.add(index)
            if index not in stop:
                pending += [ref.node for ref in graph.nodes[index].inputs]
    return seen


@every
def test_the_frontier_is_a_cut_and_the_nearest_one(truth: Hostile) -> None:
    """Nothing that mixes lies between it and the output, and all of it can be reached."""
    graph = of(truth)
    every_mixing = {mixed.node for mixed in mixings(graph)}
    for leaf in graph.leaves:
        if leaf.source is None:
            continue
        found = frontier(graph, leaf.source)
        nearest = {mixed.node for mixed in found}
        reached = _back(graph, leaf.source.node, nearest)
        assert nearest == reached & every_mixing
        assert [mixed.node for mixed in found] == sorted(nearest)


@every
def test_ancestors_and_feeding_agree(truth: Hostile) -> None:
    graph = of(truth)
    found = mixings(graph)
    above = {mixed.node: ancestors(graph, mixed.node) for mixed in found}
    for node, before in above.items():
        assert node not in before
        assert all(other < node for other in before)
        assert all(ancestors(graph, other) <= before for other in before)
    pairs = {(one.node, two.node) for one, two in feeding(graph, found)}
    assert pairs == {(o.node, t.node) for o in found for t in found if o.node in above[t.node]}


def test_a_choice_feeds_nothing() -> None:
    class ReadsBack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            one = self.out(x)
            return one + self.out(self.words(one.argmax(-1)))

    graph = recorded(ReadsBack(), torch.randn(2, 8))
    found = frontier(graph, last(graph))
    assert len(found) == 2
    assert list(feeding(graph, found)) == []


def test_layers_in_a_row_feed_each_other() -> None:
    layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    graph = recorded(layers, torch.randn(2, 8))
    first, second = mixings(graph)
    assert list(feeding(graph, [first, second])) == [(first, second)]
    assert frontier(graph, last(graph)) == (second,)
    assert frontier(graph, Ref(second.node)) == (second,)


@settings(max_examples=40)
@given(truth=hostile_models(), data=st.data())
def test_the_walk_does_not_care_about_names(truth: Hostile, data: st.DataObject) -> None:
    model = truth.make()
    mapping = data.draw(renamings(model))
    before = of(truth)
    rename(model, mapping)
    after = record_graph(model, Example.of(truth.example()), train=False)
    for one, other in zip(before.leaves, after.leaves, strict=True):
        if one.source is None or other.source is None:
            assert one.source is other.source
            continue
        assert frontier(before, one.source) == frontier(after, other.source)


def test_a_custom_operator_that_reads_a_matrix_mixes() -> None:
    @torch.library.custom_op("surgery_tests::fused_linear", mutates_args=())
    def fused_linear(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    @fused_linear.register_fake
    def _(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    graph = recorded(Uses(lambda x, w: fused_linear(x, w).relu(), 5, 8), torch.randn(2, 8))
    (found,) = frontier(graph, last(graph))
    assert (found.axis, found.features, found.in_features) == (1, 5, 8)
    assert graph.nodes[found.node].operation.startswith("surgery_tests.")


def test_sources_mix_nothing() -> None:
    graph = recorded(nn.Linear(8, 5), torch.randn(2, 8))
    sources: list[Node] = [node for node in graph.nodes if node.role != "operation"]
    assert sources
    assert all(mixing(graph, node) is None for node in sources)
