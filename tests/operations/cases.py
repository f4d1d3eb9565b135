"""Small models, and an operation on each that touches much at once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import surgery
from surgery.errors import UndoError
from surgery.operations.plan import Outcome
from tests.operations.state import differences, state_of


class Case(NamedTuple):
    """A model and what is done to it."""

    build: Callable[[], nn.Module]
    operate: Callable[..., Outcome]
    example: Callable[[], Any]


class Branches(nn.Module):
    """Two auxiliary heads in train mode, a norm over the classes behind the main one, facts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.aux1 = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
        self.aux2 = nn.Linear(8, 5)
        self.fc = nn.Linear(8, 5)
        self.behind = nn.BatchNorm1d(5)
        self.num_classes = 5
        labels = {number: f"class {number}" for number in range(5)}
        self.config = SimpleNamespace(num_labels=5, id2label=labels, seen=[labels])

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        logits = self.behind(self.fc(x))
        return (logits, self.aux2(x), self.aux1(x)) if self.training else logits


class Meddling(nn.Module):
    """A setter that writes to other modules, lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)
        self.sizes = [5]
        self._classes = 5
        self.log: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        return self._classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        self._classes = value
        self.trunk.seen_classes = value
        self.sizes.append(value)
        self.log["classes"] = value

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x))


class Shared(nn.Module):
    """One head under three addresses, two of them in one parent."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.again = self.head
        self.more = nn.ModuleList([self.head])

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        return self.head(x), self.more[0](x.relu())


class Recurrent(nn.Module):
    """Classes straight out of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(self.embedding(x))[0][:, -1])


def _vector() -> Tensor:
    return torch.ones(3, 8)


def _head(**options: Any) -> Callable[..., Outcome]:
    def operate(model: nn.Module, **more: Any) -> Outcome:
        return surgery.replace_head(model, 7, **{"example": _vector(), **options, **more})

    return operate


def _hooked() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(8, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.Dropout()), nn.Linear(6, 5)
    )
    for place in (0, 1, 3):
        model[place].register_forward_hook(_nothing)
        model[place].register_forward_pre_hook(_nothing, with_kwargs=True)
    model[3].weight.register_hook(_nothing)
    model[2].eval()
    return model


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    """A module of the caller's own, without a trace in the random state."""
    with torch.random.fork_rng(devices=[]):
        return build()


def _replace(model: nn.Module, **more: Any) -> Outcome:
    new = {
        "0": _made(lambda: nn.Linear(8, 4)),
        "1": _made(lambda: nn.Sequential(nn.GELU(), nn.Linear(4, 6))),
        "3": _made(lambda: nn.Linear(6, 9)),
    }
    return surgery.replace(model, new, example=_vector(), **more)


def _weights(model: nn.Module, **more: Any) -> Outcome:
    return surgery.replace(
        model,
        {"rnn": _made(lambda: nn.LSTM(4, 6, num_layers=2, batch_first=True))},
        example=torch.zeros(2, 5, dtype=torch.long),
        **more,
    )


def _normed(old_style: bool) -> nn.Module:
    norm = nn.utils.weight_norm if old_style else parametrizations.weight_norm
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), norm(nn.Linear(8, 5)))  # type: ignore[operator]


CASES = {
    "branches": Case(Branches, _head(), _vector),
    "hidden": Case(Branches, _head(heads="fc", hidden=(6,), dropout=0.5), _vector),
    "meddling setter": Case(Meddling, _head(), _vector),
    "shared": Case(Shared, _head(heads="head"), _vector),
    "weight norm": Case(lambda: _normed(False), _head(heads="2"), _vector),
    "root": Case(lambda: nn.Linear(8, 5), _head(heads=""), _vector),
    "root replaced": Case(
        _hooked,
        lambda m, **o: surgery.replace(
            m, {"": _made(lambda: nn.Linear(8, 2))}, example=_vector(), **o
        ),
        _vector,
    ),
    "backbone": Case(
        Meddling, lambda m, **o: surgery.remove_head(m, example=_vector(), **o), _vector
    ),
    "modules": Case(_hooked, _replace, _vector),
    "recurrent": Case(Recurrent, _weights, lambda: torch.zeros(2, 5, dtype=torch.long)),
    "freeze": Case(Branches, lambda m, **o: surgery.freeze(m, except_="fc", **o), _vector),
}


def build(name: str, *, trained: bool = True) -> nn.Module:
    """The model of a case, with gradients and moved statistics, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = CASES[name]
        model = case.build()
        if trained:
            output = model(case.example())
            outputs = output if isinstance(output, tuple) else (output,)
            sum(each.sum() for each in outputs).backward()
    return model


def branches(num_classes: int = 7, **options: Any) -> tuple[Branches, Outcome]:
    """A model and what came of replacing all its heads."""
    model = Branches()
    return model, surgery.replace_head(model, num_classes, example=_vector(), **options)


def refused(outcome: Outcome, match: str) -> UndoError:
    """Undo is refused, and nothing moves."""
    before = state_of(outcome.model)
    with pytest.raises(UndoError, match=match) as caught:
        outcome.undo()
    assert not differences(before, state_of(outcome.model))
    return caught.value
