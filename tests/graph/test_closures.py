"""Code that reaches past the skeleton, to the model or beyond it, changes neither."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from surgery.errors import RecordError
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.record import record_graph
from surgery.graph.skeleton import build_skeleton

BACKENDS = pytest.mark.parametrize("backends", [("meta",), ("real",)], ids=["meta", "real"])


def recorded(model: nn.Module, *args: Any, **options: Any) -> Graph:
    return record_graph(model, Example(args), **options)


class Featured(nn.Module):
    """A hook leaves the features of an inner layer where forward finds them."""

    def __init__(self, hook: Callable[[Featured], Callable[..., Any]]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 20))
        self.count = 0
        self.last: Any = None
        self.seen: list[Any] = []
        self.feats: dict[str, Any] = {}
        self.body[1].register_forward_hook(hook(self))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(x)
        return self.head(self.feats["inner"])

    def keep(self, output: torch.Tensor) -> None:
        self.count += 1
        self.last = output
        self.seen.append(output)
        self.feats["inner"] = output


def over_the_container(model: Featured) -> Callable[..., Any]:
    feats = model.feats
    return lambda module, args, output: feats.__setitem__("inner", output)


def over_a_function(model: Featured) -> Callable[..., Any]:
    def inner(output: torch.Tensor) -> None:
        model.keep(output)

    @functools.wraps(inner)
    def outer(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        inner(output)

    return outer


def by_default(model: Featured) -> Callable[..., Any]:
    def hook(
        module: nn.Module, args: Any, output: torch.Tensor, to: Any = model, *, also: Any = model
    ) -> None:
        to.keep(output)
        also.keep(output)

    return hook


def over_itself(model: Featured) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        assert callable(hook)
        models[0].keep(output)

    models = [model]
    return hook


HOOKS: tuple[Callable[[Featured], Callable[..., Any]], ...] = (
    lambda model: lambda module, args, output: model.keep(output),
    lambda model: functools.partial(lambda to, module, args, output: to.keep(output), model),
    over_the_container,
    over_a_function,
    by_default,
    over_itself,
)


@BACKENDS
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_over_the_model_works_on_the_copy(
    hook: Callable[[Featured], Callable[..., Any]], backends: Any, untouched: Any
) -> None:
    model, x = Featured(hook), torch.randn(2, 4)
    model(x)
    before = (model.count, model.last, list(model.seen), dict(model.feats))
    with untouched(model, x):
        graph = recorded(model, x, backends=backends)
    assert (model.count, len(model.seen)) == (before[0], len(before[2]))
    assert model.last is before[1]
    assert model.feats["inner"] is before[3]["inner"]
    (leaf,) = graph.leaves
    assert leaf.source is not None
    assert graph.nodes[leaf.source.node].depends_on_input
    assert ("head.weight",) in graph.nodes[leaf.source.node].parameters


def test_functions_that_share_a_cell_share_it_in_the_copy() -> None:
    model = nn.Linear(2, 2)
    value: Any = model

    def get() -> Any:
        return value

    def put(new: Any) -> None:
        nonlocal value
        value = new

    get.note = "kept"  # type: ignore[attr-defined]
    model.get, model.put = get, put
    copy = build_skeleton(model).model
    assert copy.get() is copy
    assert copy.get.note == "kept"
    copy.put(7)
    assert copy.get() == 7
    assert model.get() is model


def test_a_function_that_does_not_hold_the_model_stays_the_same_function() -> None:
    outside: list[Any] = []
    model = nn.Linear(2, 2)
    model.act, model.note = torch.relu, lambda value, more=1: outside.append(value)
    model.push = outside.append
    copy = build_skeleton(model).model
    assert copy.act is model.act
    assert copy.note is model.note
    assert copy.push is model.push


def test_a_built_in_method_of_a_list_of_the_model_is_that_of_its_copy() -> None:
    model = nn.Linear(2, 2)
    model.push = model.seen = []
    model.push = model.seen.append
    copy = build_skeleton(model).model
    copy.push(1)
    assert (copy.seen, model.seen) == ([1], [])


REGISTER: dict[str, Any] = {}


class ThroughAGlobal(nn.Module):
    """Finds itself through a global, which no copy can redirect."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.seen: list[Any] = []
        self.nested: dict[str, list[Any]] = {"rows": [1]}
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        model = REGISTER["model"]
        model.calls += 1
        model.last = model.fc(x)
        model.seen.append(model.last)
        model.nested["rows"][0] = 2
        model.fc.requires_grad_(False)
        if "raise" in REGISTER:
            raise KeyError("no such thing")
        return model.last


@BACKENDS
@pytest.mark.parametrize("raises", [False, True])
def test_a_model_reached_through_a_global_is_put_back(
    backends: Any, raises: bool, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = ThroughAGlobal(), torch.randn(2, 4)
    monkeypatch.setitem(REGISTER, "model", model)
    if raises:
        monkeypatch.setitem(REGISTER, "raise", True)
    with untouched(model, x):
        if raises:
            with pytest.raises(RecordError, match="raised KeyError"):
                recorded(model, x, backends=backends)
        else:
            graph = recorded(model, x, backends=backends)
            assert graph.leaves[0].spec.shape == (2, 3)
    assert model.nested == {"rows": [1]}
    model(x) if not raises else None
    assert (model.calls, model.nested) == ((0, {"rows": [1]}) if raises else (1, {"rows": [2]}))


NORM = nn.BatchNorm1d(3)
TABLE = torch.zeros(6, 3)


class UsesOutsiders(nn.Module):
    """Advances a normalisation that is no part of it, and writes a tensor that is none either."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.raises = raises

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = TABLE[1]
        row.add_(1)
        TABLE.mul_(3)
        if float(TABLE[1, 0]) != 3:
            raise ValueError("what was written is not what is read")
        TABLE[torch.arange(6) > 4] = self.fc(x).detach()[:1]
        if self.raises:
            raise KeyError("no such thing")
        return NORM(self.fc(x)) + row


@BACKENDS
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_what_is_no_part_of_the_model_is_put_back(
    backends: Any, train: bool, raises: bool, untouched: Any
) -> None:
    model, x = UsesOutsiders(raises), torch.randn(2, 4)
    NORM.train()
    with untouched(NORM, TABLE, x):
        if raises:
            with pytest.raises(RecordError, match="raised KeyError"):
                recorded(model, x, train=train, backends=backends)
        else:
            recorded(model, x, train=train, backends=backends)
    assert not TABLE.any()
    with torch.no_grad():
        UsesOutsiders(False)(x)
    assert NORM.num_batches_tracked == 1, "run itself, the forward does advance it"
    NORM.reset_running_stats()
    TABLE.zero_()
