"""Where inputs come in: found by what the graph does, whatever things are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from surgery.graph.entrance import Entrance, Layout, find_entrances, per_channel, picks
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Ref
from surgery.graph.origins import along, carry
from surgery.graph.record import record_graph


def recorded(model: nn.Module, *args: Any) -> Graph:
    return record_graph(model, Example(args), train=False)


class Runs(nn.Module):
    """A function with one layer."""

    def __init__(self, layer: nn.Module, run: Any) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, *args: Tensor) -> Any:
        return self.run(self.layer, *args)


def only(graph: Graph) -> Entrance:
    found = find_entrances(graph)
    assert not found.unseen
    (entrance,) = found.found
    return entrance


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(2, 4),
    patch=st.integers(1, 3),
    order=st.permutations(["channel", "row", "column"]),
)
def test_patches_are_traced_in_any_order(channels: int, patch: int, order: list[str]) -> None:
    place = {"channel": 1, "row": 3, "column": 5}

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        x = x.reshape(2, channels, 2, patch, 3, patch)
        x = x.permute(0, 2, 4, *(place[name] for name in order))
        return layer(x.reshape(2, 6, -1))

    layer = nn.Linear(channels * patch**2, 5)
    entrance = only(recorded(Runs(layer, run), torch.zeros(2, channels, 2 * patch, 3 * patch)))
    behind = order[order.index("channel") + 1 :]
    layout = Layout(0, patch ** (2 - len(behind)), patch ** len(behind))
    assert (entrance.axis, entrance.channels, entrance.weight_axis) == (1, channels, 1)
    assert entrance.layout == layout
    assert entrance.layout.length(channels) == layer.in_features
    assert entrance.moved_only


@pytest.mark.parametrize(
    ("run", "axis", "shape"),
    [
        (lambda layer, x: layer(x), 1, (2, 3, 8, 8)),
        (lambda layer, x: layer(x.permute(0, 3, 1, 2)), 3, (2, 8, 8, 3)),
        (lambda layer, x: layer(x[None]), 0, (3, 8, 8)),
        (lambda layer, x: layer(functional.interpolate(x, size=(9, 9))), 1, (2, 3, 8, 8)),
        (lambda layer, x: layer(functional.pad(x, (1, 1, 1, 1))), 1, (2, 3, 8, 8)),
        (lambda layer, x: layer(x.flatten(0, 1)), 2, (2, 2, 3, 8, 8)),
        (lambda layer, x: layer(((x * 2 - 1).clamp(0, 1)).double().float()), 1, (2, 3, 8, 8)),
    ],
)
def test_the_axis_of_the_channels_is_found(run: Any, axis: int, shape: tuple[int, ...]) -> None:
    entrance = only(recorded(Runs(nn.Conv2d(3, 4, 3), run), torch.zeros(shape)))
    assert (entrance.axis, entrance.channels, entrance.layout) == (axis, 3, Layout(0, 1, 1))


def test_what_is_joined_with_other_features_starts_later() -> None:
    def run(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(torch.cat([torch.zeros(2, 2, 8, 8), x], 1))

    entrance = only(recorded(Runs(nn.Conv2d(5, 4, 3), run), torch.zeros(2, 3, 8, 8)))
    assert entrance.layout == Layout(2, 1, 1)


def test_a_weight_that_is_computed_says_so() -> None:
    def run(layer: nn.Module, x: Tensor) -> Tensor:
        return functional.conv2d(x, layer.weight * 2)

    entrance = only(recorded(Runs(nn.Conv2d(3, 4, 3), run), torch.zeros(2, 3, 8, 8)))
    assert not entrance.moved_only
    assert entrance.weight == ("layer.weight",)


def test_zeros_around_the_image_are_seen() -> None:
    for layer, padded in ((nn.Conv2d(3, 4, 3), False), (nn.Conv2d(3, 4, 3, padding=1), True)):
        assert only(recorded(layer, torch.zeros(2, 3, 8, 8))).padded is padded
    reflecting = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    assert not only(recorded(reflecting, torch.zeros(2, 3, 8, 8))).padded
    zeros = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3))
    assert only(recorded(zeros, torch.zeros(2, 3, 8, 8))).padded


def test_what_cannot_be_traced_is_listed_with_a_reason() -> None:
    def run(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.sum(1, keepdim=True))

    found = find_entrances(recorded(Runs(nn.Conv2d(1, 4, 3), run), torch.zeros(2, 3, 8, 8)))
    (unseen,) = found.unseen
    assert (found.found, unseen.path, unseen.weights) == ((), "args[0]", ("layer.weight",))
    assert unseen.reason


def test_only_the_first_layers_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), nn.Conv2d(3, 4, 3))
    assert only(recorded(model, torch.zeros(2, 3, 8, 8))).weight == ("0.weight",)


def test_tensors_with_an_entry_a_channel_are_found() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
            self.scale = nn.Parameter(torch.ones(3))
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv((x - self.mean) * self.scale[:, None, None])

    graph = recorded(Normed(), torch.zeros(2, 3, 8, 8))
    start = next(node for node in graph.nodes if node.role == "input")
    found = {node.addresses[0]: axis for node, axis in per_channel(graph, Ref(start.index), 1)}
    assert found == {"mean": 1, "scale": 0}
    assert not picks(graph, Ref(start.index), 1)


def test_channels_that_are_taken_by_number_are_found() -> None:
    def run(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(torch.stack([x[:, 2], x[:, 1], x[:, 0]], 1))

    graph = recorded(Runs(nn.Conv2d(3, 4, 3), run), torch.zeros(2, 3, 8, 8))
    start = next(node for node in graph.nodes if node.role == "input")
    assert len(picks(graph, Ref(start.index), 1)) == 3


def test_numbers_are_carried_through_writes_into_views() -> None:
    def run(layer: nn.Module, x: Tensor) -> Tensor:
        whole = x.new_zeros(2, 3, 9, 9)
        whole[:, :, :8, :8].copy_(x)
        return layer(whole)

    graph = recorded(Runs(nn.Conv2d(3, 4, 3), run), torch.zeros(2, 3, 8, 8))
    start = next(node for node in graph.nodes if node.role == "input")
    numbers = carry(graph, Ref(start.index), 1)
    convolution = next(node for node in graph.operations if "convolution" in node.operation)
    assert along(numbers[convolution.inputs[0]], 1) == (1, 2, 3)
    with torch.device("meta"):
        assert only(graph).channels == 3


def test_numbers_that_meet_others_are_lost() -> None:
    numbers = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert along(numbers, 1) == (1, 2)
    assert along(numbers, 0) is None
    assert along(torch.tensor([[float("nan")]]), 0) is None
    assert along(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), 1) == (1, 2)
