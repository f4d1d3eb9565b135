"""A recording leaves no trace: in the model, in its example, in the process."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from surgery.errors import RecordError
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.record import record_graph
from tests.hostile import Hostile, leaves
from tests.strategies import HOSTILE


def recorded(model: nn.Module, *args: Any, **options: Any) -> Graph:
    return record_graph(model, Example(args), **options)


class CachesInForward(nn.Module):
    """Keeps a tensor, a list entry, a dict entry and a count from its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.last: torch.Tensor | None = None
        self.seen: list[torch.Tensor] = []
        self.by_size: dict[int, torch.Tensor] = {}
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = self.fc(x)
        self.seen.append(self.last)
        self.by_size[len(x)] = self.last
        self.new = self.last
        return self.last


class WritesParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bank = nn.Parameter(torch.randn(5, 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.bank[0] = x.mean(0)
            self.fc.weight.data.clamp_(-0.01, 0.01)
            self.fc.bias.copy_(torch.ones(3))
        return self.fc(x + self.bank[0])


class WritesParametersForReal(WritesParameters):
    """The same, where the forward pass needs values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().sum().item() > -1 else x


class WritesInInferenceMode(WritesParametersForReal):
    """Modes that show composite operators whole nest inside the recording."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return super().forward(x)


class ThroughAClosure(nn.Module):
    """Reaches its layers through a function that holds the originals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 3)
        norm, fc = self.norm, self.fc

        def run(x: torch.Tensor) -> torch.Tensor:
            norm.num_batches_tracked.add_(1)
            return fc(norm(x))

        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def patched() -> nn.Module:
    """A forward replaced on the instance by a function that holds the original."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    original = model.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        model[1].num_batches_tracked += 1
        return original(x) * 2

    model.forward = forward
    return model


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(len(x), 4, generator=self.generator)
        return self.fc(x + noise)


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(99)
        random.random()
        np.random.rand()
        return self.fc(nn.functional.dropout(x + torch.rand(4)))


class Switches(nn.Module):
    """Leaves grad mode, train flags and the fused attention path changed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)
        torch.backends.mha.set_fastpath_enabled(True)
        self.train(not self.training)
        self.fc.requires_grad_(False)
        return self.fc(x)


class WritesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        x[0] = 7
        return self.fc(x)


class Raises(CachesInForward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)
        super().forward(x)
        np.random.rand()
        raise KeyError("no such thing")


class WritesAndRaises(WritesParameters):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        super().forward(x)
        raise KeyError(x.sum().item())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(checkpoint(self.block, x, use_reentrant=self.reentrant))


def with_old_norms() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = torch.nn.utils.weight_norm(nn.Linear(4, 4))
        second = torch.nn.utils.spectral_norm(nn.Linear(4, 4))
    third = prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=0.5)
    return nn.Sequential(first, second, third)


def with_new_norms() -> nn.Module:
    first = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    second = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    third = torch.nn.utils.parametrizations.orthogonal(nn.Linear(4, 3))
    return nn.Sequential(first, second, third)


def sharing() -> nn.Module:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(4, 4)})
    model["c"].weight = layer.weight
    return nn.Sequential(*model.values(), nn.Linear(4, 3))


def with_gradients() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model(torch.randn(2, 4)).sum().backward()
    return model


MODELS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)),
    CachesInForward,
    WritesParameters,
    WritesParametersForReal,
    WritesInInferenceMode,
    ThroughAClosure,
    patched,
    OwnGenerator,
    Draws,
    Switches,
    WritesItsInput,
    lambda: Checkpointed(True),
    lambda: Checkpointed(False),
    with_old_norms,
    with_new_norms,
    sharing,
    with_gradients,
)


@pytest.mark.parametrize("train", [None, False, True])
@pytest.mark.parametrize("backends", [("meta", "real"), ("real",)], ids=["meta", "real"])
@pytest.mark.parametrize("make", MODELS)
def test_model_example_and_process_stay_as_they_were(
    make: Callable[[], nn.Module], backends: Any, train: bool | None, untouched: Any
) -> None:
    model = make()
    model[0].eval() if isinstance(model, nn.Sequential) else model.train()
    x = torch.randn(6, 4)
    with untouched(model, x):
        graph = recorded(model, x, train=train, backends=backends)
    assert graph.leaves[0].spec.shape == (6, 3)
    needs_values = isinstance(model, WritesParametersForReal)
    assert graph.backend == ("real" if needs_values else backends[0])


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_hostile_model_stays_as_it_was(hostile: Hostile, untouched: Any) -> None:
    model = hostile.make()
    example = Example.of(hostile.example())
    given = [*leaves(example.args).values(), *leaves(dict(example.kwargs)).values()]
    for train in (False, True):
        with untouched(model, *given):
            record_graph(model, example, train=train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", [Raises, WritesAndRaises])
def test_a_forward_that_raises_leaves_all_as_it_was(
    make: Callable[[], nn.Module], train: bool, untouched: Any
) -> None:
    model, x = make(), torch.randn(6, 4)
    with (
        untouched(model, x),
        pytest.raises(RecordError, match="raised KeyError") as caught,
    ):
        recorded(model, x, train=train)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "train" in str(caught.value) or "eval" in str(caught.value)


def test_a_real_parameter_that_forward_writes_is_put_back_bit_for_bit(untouched: Any) -> None:
    model, x = WritesParametersForReal(), torch.randn(6, 4)
    with untouched(model):
        graph = recorded(model, x)
    assert graph.backend == "real"
    version = model.fc.weight._version
    model(torch.randn(6, 4))
    assert model.bank._version > 0, "the model does write when it is run"
    assert model.fc.weight._version >= version


def test_hooks_of_the_user_run_and_stay(untouched: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    ran: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: ran.append("before")),
        model[0].register_forward_hook(lambda *_: ran.append("after")),
        model.register_forward_hook(lambda *_: ran.append("root")),
        model[1].weight.register_hook(lambda grad: ran.append("gradient")),
    ]
    x = torch.randn(2, 4)
    with untouched(model, x):
        graph = recorded(model, x)
    assert ran == ["before", "after", "root"]
    assert any("hooks" in spot for spot in graph.blind_spots)
    for handle in handles:
        handle.remove()
    assert not model[0]._forward_hooks
    assert not any("hooks" in spot for spot in recorded(model, torch.randn(2, 4)).blind_spots)


def test_a_hook_that_changes_the_output_is_in_the_graph() -> None:
    model = nn.Linear(4, 3)
    model.register_forward_hook(lambda module, args, output: output[:, :2])
    assert recorded(model, torch.randn(5, 4)).leaves[0].spec.shape == (5, 2)


def test_gradients_still_flow_afterwards() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    recorded(model, torch.randn(2, 4))
    model(torch.randn(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_warnings_of_a_forward_are_not_shown_and_filters_stay() -> None:
    class Warns(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            warnings.warn("careful", stacklevel=2)
            warnings.simplefilter("ignore")
            return super().forward(x)

    before = list(warnings.filters)
    recorded(Warns(4, 3), torch.randn(2, 4))
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="careful"):
        Warns(4, 3)(torch.randn(2, 4))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_graph_does_not_depend_on_the_callers_grad_mode(mode: Any, untouched: Any) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(2, 3, 4)
    plain = recorded(model, x)
    with mode(), untouched(model):
        assert recorded(model, x) == plain
    with torch.inference_mode():
        made_inside = torch.randn(2, 3, 4)
    assert recorded(model, made_inside) == plain


def test_what_a_graph_keeps_is_no_tensor_and_no_module() -> None:
    graph = recorded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8))

    def check(value: Any) -> None:
        assert not isinstance(value, torch.Tensor | nn.Module)
        for item in value if isinstance(value, list | tuple) else ():
            check(item)

    for node in graph.nodes:
        for value in (node.arguments, node.keywords, node.outputs, node.addresses):
            check(value)
