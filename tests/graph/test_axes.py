"""An axis is followed to where it really goes: a twin of another size is the witness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.graph.aten import is_pointwise, operator, packet
from surgery.graph.axes import Meeting, Track, follow
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.record import record_graph
from surgery.graph.walk import Mixing, mixing, weight_sources

CLASSES, PROBE = 13, 17
Step = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """A layer of classes, and steps behind it."""

    def __init__(self, classes: int, *steps: Step) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(8, classes), steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for step in self.steps:
            x = step(x)
        return x


def recorded(model: nn.Module, *given: Tensor) -> Graph:
    return record_graph(model, Example(given), train=False)


def followed(graph: Graph) -> Track:
    found = head(graph)
    return follow(graph, found.value, found.axis)


def head(graph: Graph) -> Mixing:
    """The operation that makes the classes."""
    every = (mixing(graph, node) for node in graph.operations)
    (found,) = [
        mixed
        for mixed in every
        if mixed is not None
        and weight_sources(graph, mixed.weight)[0].addresses == ("head.weight",)
    ]
    return found


def found_axis(*steps: Step, example: Tensor | None = None) -> int | None:
    graph = recorded(Chain(CLASSES, *steps), torch.zeros(2, 3, 8) if example is None else example)
    source = graph.leaves[0].source
    assert source is not None
    return followed(graph).axes.get(source)


def true_axis(*steps: Step, example: Tensor | None = None) -> int | None:
    """The one axis that has the number of classes in both twins, by running them."""
    given = torch.zeros(2, 3, 8) if example is None else example
    with torch.no_grad():
        one, two = (Chain(size, *steps)(given).shape for size in (CLASSES, PROBE))
    changed = [axis for axis, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1]]
    if len(changed) != 1 or (one[changed[0]], two[changed[0]]) != (CLASSES, PROBE):
        return None
    return changed[0]


def _steps(rank: int) -> st.SearchStrategy[Step]:
    dims, free = st.integers(0, rank - 1), st.integers(0, rank)
    choices: list[st.SearchStrategy[Step]] = [
        st.tuples(dims, dims).map(lambda d: lambda x: x.transpose(*d)),
        st.tuples(dims, dims).map(lambda d: lambda x: x.clone().transpose_(*d)),
        free.map(lambda d: lambda x: x.clone().unsqueeze_(d)),
        st.permutations(range(rank)).map(lambda order: lambda x: x.permute(*order)),
        free.map(lambda d: lambda x: x.unsqueeze(d)),
        dims.map(lambda d: lambda x: x.squeeze(d)),
        dims.map(lambda d: lambda x: x.mean(d)),
        dims.map(lambda d: lambda x: x.sum(d, keepdim=True)),
        dims.map(lambda d: lambda x: x.amax(d)),
        dims.map(lambda d: lambda x: x.max(d).values),
        dims.map(lambda d: lambda x: x.logsumexp(d)),
        dims.map(lambda d: lambda x: x.norm(dim=d)),
        dims.map(lambda d: lambda x: x.softmax(d)),
        dims.map(lambda d: lambda x: x.log_softmax(d)),
        dims.map(lambda d: lambda x: x.cumsum(d)),
        dims.map(lambda d: lambda x: x.flip(d)),
        dims.map(lambda d: lambda x: x.select(d, 0)),
        dims.map(lambda d: lambda x: x.narrow(d, 0, 1)),
        dims.map(lambda d: lambda x: torch.cat([x, x], d)),
        dims.map(lambda d: lambda x: x.sort(d).values),
        dims.map(lambda d: lambda x: x.roll(1, d)),
        dims.map(lambda d: lambda x: x.unbind(d)[-1]),
        dims.map(lambda d: lambda x: x.index_select(d, torch.tensor([0, 0]))),
        dims.map(lambda d: lambda x: x.repeat_interleave(2, d)),
        dims.map(lambda d: lambda x: x / x.sum(d, keepdim=True)),
        dims.map(lambda d: lambda x: x - x.mean(d, keepdim=True)),
        free.map(lambda d: lambda x: torch.stack([x, x], d)),
        st.tuples(dims, dims).map(lambda d: lambda x: x.flatten(min(d), max(d))),
        free.map(lambda d: lambda x: x.unsqueeze(d).expand(*x.shape[:d], 4, *x.shape[d:])),
        st.just(lambda x: x.relu()),
        st.just(lambda x: x.clone().mul_(2.0)),
        st.just(lambda x: torch.where(x > 0, x, x.new_zeros(()))),
        st.just(lambda x: x.reshape(*x.shape, 1)),
        st.just(lambda x: x.reshape(1, *x.shape)),
        st.just(lambda x: torch.zeros_like(x).copy_(x)),
        st.just(lambda x: x.masked_fill(x > 0, -1.0)),
        st.just(lambda x: x.contiguous().view(-1, *x.shape[1:])),
    ]
    return st.one_of(choices)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = ()
    for _ in range(draw(st.integers(1, 6))):
        with torch.no_grad():
            rank = Chain(CLASSES, *steps)(torch.zeros(2, 3, 8)).dim()
        if rank:
            steps = (*steps, draw(_steps(rank)))
    return steps


@settings(max_examples=250)
@given(steps=chains())
def test_an_axis_is_followed_to_where_the_twin_says(steps: tuple[Step, ...]) -> None:
    """Never to a wrong place; lost only where it was summed over, cut or merged on the way."""
    with torch.no_grad():
        assume(Chain(CLASSES, *steps)(torch.zeros(2, 3, 8)).numel() < 4000)
    axis, truth = found_axis(*steps), true_axis(*steps)
    whole = all(true_axis(*steps[:end]) is not None for end in range(1, len(steps) + 1))
    if whole or (axis is not None and truth is not None):
        assert axis == truth


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.flatten(0, 1),
        lambda x: x.view(6, -1).view(3, 2, -1),
        lambda x: x.transpose(1, 2).contiguous().view(2, -1, 3, 1),
        lambda x: x.view(1, *x.shape),
        lambda x: F.interpolate(x.permute(0, 2, 1), scale_factor=2.0),
        lambda x: F.pad(x.transpose(1, 2), (1, 1)),
        lambda x: F.avg_pool1d(x.transpose(1, 2), 2),
        lambda x: F.adaptive_max_pool1d(x.transpose(1, 2), 1).squeeze(-1),
        lambda x: torch.einsum("btc,bt->bc", x, torch.ones(2, 3)),
        lambda x: torch.einsum("btc,bs->bsc", x, torch.ones(2, 4)),
        lambda x: torch.eye(3) @ x,
        lambda x: (torch.ones(2, 4, 3) @ x).transpose(1, 2),
        lambda x: torch.zeros(5, 3, x.shape[-1]).index_add(0, torch.tensor([4, 1]), x),
        lambda x: torch.zeros(2, 3, x.shape[-1]).index_put((torch.tensor([0, 1]),), x),
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x[:, torch.tensor([True, False, True])],
        lambda x: x[..., torch.arange(x.shape[-1]).flip(0)],
        lambda x: x.gather(1, torch.zeros(2, 1, x.shape[-1], dtype=torch.long)),
        lambda x: torch.cat([x, torch.zeros(2, 1, x.shape[-1])], 1),
        lambda x: torch.stack(x.unbind(1), 2),
        lambda x: torch.stack(list(x)),
        lambda x: x.chunk(3, 1)[2],
        lambda x: x.split([1, 2], 1)[1],
        lambda x: x.unfold(1, 2, 1).mean(-1),
        lambda x: x.cummax(1).values,
        lambda x: x.topk(2, 1).values,
        lambda x: x.tril(),
        lambda x: torch.vmap(lambda row: row * 2)(x),
        lambda x: x.var(1),
        lambda x: torch.nn.functional.normalize(x, dim=-1),
        lambda x: F.gumbel_softmax(x, dim=-1),
        lambda x: x.double().float().to(torch.bfloat16),
        lambda x: x.movedim(-1, 0),
        lambda x: x.T if x.dim() == 2 else x.mT,
        lambda x: x.unflatten(0, (1, 2)),
        lambda x: x.swapaxes(0, 2).narrow(1, 1, 2),
        lambda x: x.detach() + 1,
        lambda x: torch.lerp(x, x * 2, 0.5),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: F.dropout(x, 0.0),
    ],
)
def test_operators_that_keep_the_axis(step: Step) -> None:
    truth = true_axis(step)
    assert truth is not None
    assert found_axis(step) == truth


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum(-1),
        lambda x: x.flatten(1),
        lambda x: x.flatten(),
        lambda x: x.argmax(-1).float(),
        lambda x: x[..., 0],
        lambda x: x[..., :5],
        lambda x: x.topk(3).values,
        lambda x: x @ x.mT,
        lambda x: x.logsumexp(-1, keepdim=True),
        lambda x: x[..., :1].expand(2, 3, 13),
        lambda x: x.mean(),
        lambda x: torch.cdist(x, x),
        lambda x: x.max(),
        lambda x: x.norm(),
        lambda x: x.gather(2, torch.zeros(2, 3, 1, dtype=torch.long)),
    ],
)
def test_operators_that_end_it(step: Step) -> None:
    assert true_axis(step) is None
    source = recorded(Chain(CLASSES, step), torch.zeros(2, 3, 8)).leaves[0]
    axis = found_axis(step)
    assert axis is None or source.spec.shape[axis] != CLASSES


class Behind(nn.Module):
    """Classes, and one thing behind them that has tensors of its own."""

    def __init__(self, behind: nn.Module, *, turned: bool = False) -> None:
        super().__init__()
        self.head, self.behind, self.turned = nn.Linear(8, 5), behind, turned

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.behind(x.transpose(1, 2) if self.turned else x)


class Uses(nn.Module):
    def __init__(self, tensor: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.tensor, self.use = nn.Parameter(tensor), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.tensor)


def met(behind: nn.Module, *, turned: bool = False) -> dict[str, tuple[int, bool]]:
    graph = recorded(Behind(behind, turned=turned).eval(), torch.zeros(2, 3, 8))
    found: dict[str, tuple[int, bool]] = {}
    for meeting in followed(graph).meetings:
        for source in weight_sources(graph, meeting.operand):
            found[source.addresses[0].removeprefix("behind.")] = (meeting.axis, meeting.contracted)
    return found


NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize(
    ("behind", "turned", "expected"),
    [
        (nn.BatchNorm1d(5), True, dict.fromkeys(NORM, (0, False))),
        (nn.GroupNorm(1, 5), True, dict.fromkeys(NORM[:2], (0, False))),
        (nn.LayerNorm(5), False, dict.fromkeys(NORM[:2], (0, False))),
        (nn.LayerNorm((3, 5)), False, dict.fromkeys(NORM[:2], (1, False))),
        (nn.LayerNorm(3), True, {}),
        (nn.PReLU(5), True, {"weight": (1, False)}),
        (nn.PReLU(), True, {}),
        (nn.Linear(5, 4), False, {"weight": (0, True)}),
        (nn.Conv1d(5, 4, 1), True, {"weight": (1, True)}),
        (nn.Conv1d(3, 4, 1), False, {}),
        (Uses(torch.ones(5), lambda x, t: x + t), False, {"tensor": (0, False)}),
        (Uses(torch.ones(3, 1), lambda x, t: x + t), False, {}),
        (Uses(torch.ones(3, 5), lambda x, t: x * t), False, {"tensor": (1, False)}),
        (Uses(torch.ones(1), lambda x, t: x / t), False, {}),
        (Uses(torch.ones(()), lambda x, t: x / t), False, {}),
        (Uses(torch.ones(5), lambda x, t: torch.maximum(t, x)), False, {"tensor": (0, False)}),
        (Uses(torch.ones(5), lambda x, t: t - x), False, {"tensor": (0, False)}),
        (Uses(torch.ones(5, 4), lambda x, t: x @ t), False, {"tensor": (0, True)}),
        (Uses(torch.ones(4, 5), F.linear), False, {"tensor": (0, True)}),
        (Uses(torch.ones(5), lambda x, t: x @ t), False, {"tensor": (0, True)}),
        (
            Uses(torch.ones(5), lambda x, t: F.nll_loss(x[0], torch.tensor([0, 1, 2]), t)),
            False,
            {"tensor": (0, False)},
        ),
        (
            Uses(
                torch.ones(5), lambda x, t: F.cross_entropy(x[:, 0], torch.tensor([0, 1]), weight=t)
            ),
            False,
            {"tensor": (0, False)},
        ),
        (
            Uses(
                torch.ones(5),
                lambda x, t: F.binary_cross_entropy_with_logits(
                    x, torch.ones(2, 3, 5), pos_weight=t
                ),
            ),
            False,
            {"tensor": (0, False)},
        ),
    ],
    ids=repr,
)
def test_what_meets_the_axis(
    behind: nn.Module, turned: bool, expected: dict[str, tuple[int, bool]]
) -> None:
    found = met(behind, turned=turned)
    if any(contracted for _, contracted in expected.values()):
        # The operand is the weight as the operation takes it: possibly transposed.
        assert {name: contracted for name, (_, contracted) in found.items()} == {
            name: contracted for name, (_, contracted) in expected.items()
        }
    else:
        assert found == expected


def test_a_contraction_names_the_axis_that_is_summed_over() -> None:
    graph = recorded(Behind(nn.Linear(5, 4)), torch.zeros(2, 3, 8))
    (meeting,) = [m for m in followed(graph).meetings if m.contracted]
    assert graph.spec(meeting.operand).shape[meeting.axis] == 5


def test_what_is_lost_is_said() -> None:
    graph = recorded(Chain(CLASSES, lambda x: x.relu().sum(-1)), torch.zeros(2, 3, 8))
    track = followed(graph)
    (lost,) = track.lost
    assert packet(graph.nodes[lost].operation) == "sum"
    assert not [m for m in track.meetings if isinstance(m, Meeting) and m.contracted]


def test_only_what_depends_on_the_start_is_visited() -> None:
    graph = recorded(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5)), torch.zeros(2, 8))
    last = graph.leaves[0].source
    assert last is not None
    assert dict(follow(graph, last, 1).axes) == {last: 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten.add.Tensor", True),
        ("aten.mul_.Tensor", True),
        ("aten.copy_.default", True),
        ("aten.where.self", True),
        ("aten.mm.default", False),
        ("aten.sum.dim_IntList", False),
        ("surgery.updated", False),
        ("nowhere.nothing.default", False),
    ],
)
def test_which_operators_are_pointwise(name: str, expected: bool) -> None:
    assert is_pointwise(name) is expected


def test_names_of_operators() -> None:
    assert operator("aten.add.Tensor") is torch.ops.aten.add.Tensor
    assert operator("aten.no_such_thing.default") is None
    assert [packet(name) for name in ("aten.add.Tensor", "surgery.updated", "x")] == [
        "add",
        "updated",
        "x",
    ]


def test_a_view_of_a_view_is_written_to_through_its_own_views_alone() -> None:
    def written(x: Tensor) -> Tensor:
        x = x.view(2, 3, CLASSES if x.shape[1] % CLASSES == 0 else PROBE)
        part = x[:, 1:]
        x[:, :2] += 1
        part += part.relu()
        return x

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return written(self.head(x).view(2, 3 * CLASSES))

    graph = recorded(Wide(), torch.zeros(2, 3, 8))
    (made,) = [mixed for node in graph.operations if (mixed := mixing(graph, node))]
    for node in graph.operations:
        for ref in node.inputs:
            for axis in range(len(graph.spec(ref).shape)):
                track = follow(graph, ref, axis)
                assert all(place >= 0 for place in track.axes.values())
    assert made.features == CLASSES
