"""Small models in training, and what their optimizers hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surgery.families.registry import Registry

NONE = Registry.of()


# The earliest torch that is supported does not have it.
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")


class Making(NamedTuple):
    """How an optimizer is made."""

    name: str
    make: Callable[[Iterable[Any]], Optimizer]
    elementwise: bool = True


class Shampoo(Optimizer):
    """Preconditioners for both sides of a matrix, of the parameter's shape where that is square."""

    def __init__(self, params: Iterable[Any], lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                flat = parameter.grad.reshape(len(parameter), -1)
                state = self.state[parameter]
                if not state:
                    state["left"] = torch.zeros(len(flat), len(flat))
                    state["right"] = torch.zeros(flat.shape[1], flat.shape[1])
                state["left"] += flat @ flat.T
                state["right"] += flat.T @ flat
                scaled = flat / (1 + state["left"].trace() + state["right"].trace()).sqrt()
                parameter -= group["lr"] * scaled.reshape(parameter.shape)


class Ahead(Optimizer):
    """Sums of squares that the constructor makes, and no step: Adagrad's in torch 2.8."""

    def __init__(self, params: Iterable[Any], lr: float = 0.05, start: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "start": start})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.full_like(parameter, group["start"])
                self.state[parameter]["step"] = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                state["sum"] += parameter.grad**2
                parameter -= group["lr"] * parameter.grad / state["sum"].sqrt()


def _optimizers() -> list[Making]:
    optim = torch.optim
    return [
        Making("sgd", lambda ps: optim.SGD(ps, lr=0.05)),
        Making("momentum", lambda ps: optim.SGD(ps, lr=0.05, momentum=0.9)),
        Making(
            "nesterov",
            lambda ps: optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        Making("adam", lambda ps: optim.Adam(ps, lr=0.01)),
        Making("foreach", lambda ps: optim.Adam(ps, lr=0.01, foreach=True)),
        Making("fused", lambda ps: optim.Adam(ps, lr=0.01, fused=True)),
        Making("adamw", lambda ps: optim.AdamW(ps, lr=0.01, amsgrad=True)),
        Making("adagrad", lambda ps: optim.Adagrad(ps, lr=0.05, initial_accumulator_value=0.5)),
        Making("ahead", Ahead),
        Making("rmsprop", lambda ps: optim.RMSprop(ps, lr=0.01, momentum=0.9, centered=True)),
        Making("adadelta", lambda ps: optim.Adadelta(ps, lr=0.5)),
        Making("adamax", lambda ps: optim.Adamax(ps, lr=0.01)),
        Making("nadam", lambda ps: optim.NAdam(ps, lr=0.01)),
        Making("radam", lambda ps: optim.RAdam(ps, lr=0.01)),
        Making("asgd", lambda ps: optim.ASGD(ps, lr=0.05)),
        Making("rprop", lambda ps: optim.Rprop(ps, lr=0.01)),
        Making("adafactor", lambda ps: optim.Adafactor(ps, lr=0.01), elementwise=False),
        Making("shampoo", Shampoo, elementwise=False),
    ]


OPTIMIZERS = _optimizers()


def network(classes: int = 5, seed: int = 0) -> nn.Sequential:
    """Matrices, vectors and statistics; the head is ``4``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 16),
            nn.Linear(16, classes),
        )


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 8, generator=generator), torch.randint(5, (6,), generator=generator))
        for _ in range(count)
    ]


def train(model: nn.Module, optimizer: Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    """Steps of a loss that looks at the first five classes alone."""
    for images, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images)[:, :5], labels).backward()
        optimizer.step()


def held(optimizer: Optimizer) -> dict[str, Any]:
    """Everything in an optimizer: which tensors in which groups, and a copy of every state."""
    return {
        "groups": [
            {key: value for key, value in group.items() if key != "params"}
            | {"params": [id(each) for each in group["params"]]}
            for group in optimizer.param_groups
        ],
        "states": {
            id(tensor): {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in state.items()
            }
            for tensor, state in optimizer.state.items()
        },
    }


def same(one: Any, other: Any) -> bool:
    """Whether two of those are equal, bit for bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def sound(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that groups hold each parameter once, of the model alone, with a state that fits."""
    listed = [each for group in optimizer.param_groups for each in group["params"]]
    assert len(listed) == len({id(each) for each in listed})
    assert {id(each) for each in listed} <= {id(each) for each in model.parameters()}
    for tensor in optimizer.state:
        assert any(tensor is each for each in listed)
