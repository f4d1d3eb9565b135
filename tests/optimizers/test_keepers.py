"""Optimizers inside optimizers, and several of them on one model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import surgery
from surgery.errors import ArgumentError
from surgery.optimizers.keepers import Keepers
from tests.optimizers.test_following import OPERATIONS
from tests.optimizers.training import batches, held, needs_muon, network, same, sound, train

Data = list[tuple[Tensor, Tensor]]


class Lookahead(Optimizer):
    """Shows the groups of another, and lets that keep its slow copy as well."""

    def __init__(self, base: Optimizer, every: int) -> None:
        super().__init__(base.param_groups, {})
        self._base_optimizer = base
        self.param_groups = base.param_groups
        self.every, self.count = every, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._base_optimizer.step()
        self.count += 1
        for each in (p for group in self.param_groups for p in group["params"]):
            if self.count % self.every == 0:
                slow = self._base_optimizer.state[each].setdefault("slow", each.clone())
                each.copy_(slow.add_(each - slow, alpha=0.5))


class Sharpness(Optimizer):
    """Steps up and down again, and remembers from where; what it steps with is inside."""

    def __init__(self, params: Iterable[Any], base: type[Optimizer], **options: Any) -> None:
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        for each in (p for group in self.param_groups for p in group["params"]):
            self.state[each]["old"] = each.clone()
            each += 0.01 * each.grad

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in (p for group in self.param_groups for p in group["params"]):
            each.copy_(self.state[each]["old"])
        self.base_optimizer.step()


class Several(Optimizer):
    """Steps each of several, and shows all their groups."""

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        self.optimizers = list(optimizers)
        self.param_groups = [group for each in optimizers for group in each.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in self.optimizers:
            each.step()


def climbing(model: nn.Module, optimizer: Optimizer, data: Data) -> None:
    for images, labels in data:
        for step in (optimizer.climb, optimizer.step):  # type: ignore[attr-defined]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images)[:, :5], labels).backward()
            step()


def several(ps: Iterable[nn.Parameter]) -> Optimizer:
    listed = list(ps)
    vectors = [p for p in listed if p.dim() < 2]
    matrices = [p for p in listed if p.dim() > 1]
    return Several(optim.Adam(matrices, lr=0.01), optim.SGD(vectors, lr=0.05, momentum=0.9))


Training = Callable[[nn.Module, Optimizer, Data], None]
NESTED: dict[str, tuple[Callable[[Iterable[Any]], Optimizer], Training]] = {
    # The slow copy is made after the operation.
    "around": (lambda ps: Lookahead(optim.Adam(ps, lr=0.01), every=5), train),
    "twice-around": (
        lambda ps: Lookahead(Lookahead(optim.Adam(ps, lr=0.01), every=99), every=99),
        train,
    ),
    "climbing": (lambda ps: Sharpness(ps, optim.SGD, lr=0.05, momentum=0.9), climbing),
    "several": (several, train),
}


def innermost(optimizer: Optimizer) -> list[Optimizer]:
    found = Keepers.of(optimizer)
    return [found.optimizer, *found.parts]


@pytest.mark.parametrize("name", NESTED)
def test_what_the_inner_ones_learned_goes_on(name: str) -> None:
    make, training = NESTED[name]
    whole = network().double()
    data = [(images.double(), labels) for images, labels in batches(8)]
    stopped = copy.deepcopy(whole)
    training(whole, make(whole.parameters()), data)
    optimizer = make(stopped.parameters())
    training(stopped, optimizer, data[:4])
    before = [held(each) for each in innermost(optimizer)]
    outcome = OPERATIONS["more"](stopped)
    assert {moved.state for moved in surgery.follow(optimizer, outcome).moved} == {"carried"}
    for each in innermost(optimizer):
        sound(stopped, each)
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert all(map(same, [held(each) for each in innermost(optimizer)], before))
    surgery.follow(optimizer, OPERATIONS["more"](stopped))
    training(stopped, optimizer, data[4:])
    for one, two in zip(whole.parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(two[: len(one)], one, rtol=1e-9, atol=1e-10)


def test_what_the_outer_one_keeps_goes_and_is_said() -> None:
    model = network()
    optimizer = Sharpness(model.parameters(), optim.SGD, lr=0.05, momentum=0.9)
    climbing(model, optimizer, batches(1))
    weight = model[4].weight
    outcome = OPERATIONS["more"](model)
    moved = surgery.follow(optimizer, outcome).moved[0]
    assert "what Sharpness keeps" in moved.reason
    assert weight not in optimizer.state
    assert model[4].weight not in optimizer.state
    # Nor is it needed to follow back.
    outcome.undo()
    surgery.follow(optimizer.base_optimizer, outcome)
    sound(model, optimizer)


def test_groups_that_only_look_alike_are_refused() -> None:
    model = network()
    outer = optim.SGD(model.parameters(), lr=0.1)
    outer.parts = [optim.Adam(model.parameters())]  # type: ignore[attr-defined]
    outcome = OPERATIONS["more"](model)
    before = held(outer)
    with pytest.raises(ArgumentError, match="groups of their own") as error:
        surgery.follow(outer, outcome)
    assert "each optimizer inside" in str(error.value.fix)
    assert same(held(outer), before)
    for each in (outer.parts[0],):  # type: ignore[attr-defined]
        surgery.follow(each, outcome)
        sound(model, each)
    # One of another model is nobody's business.
    outer.parts = [optim.Adam(network().parameters())]  # type: ignore[attr-defined]
    surgery.follow(outer, outcome)
    sound(model, outer)


def test_what_was_learned_on_the_parameters_themselves_is_refused() -> None:
    library = pytest.importorskip("timm.optim")
    model = network()
    inner = library.Adahessian(model.parameters())
    outcome = OPERATIONS["more"](model)
    for optimizer in (inner, Lookahead(inner, every=2)):
        with pytest.raises(ArgumentError, match="on the parameters themselves"):
            surgery.follow(optimizer, outcome)
    again = library.Adahessian(model.parameters())
    (images, labels), *_ = batches(1)
    loss = nn.functional.cross_entropy(model(images), labels)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    for each, gradient in zip(parameters, gradients, strict=True):
        each.grad = gradient
    again.step()
    model.zero_grad()


@needs_muon
@pytest.mark.parametrize("first", ["matrices", "vectors"])
@pytest.mark.parametrize("operation", ["more", "other", "deeper", "added", "wrapped"])
def test_of_two_optimizers_each_new_parameter_has_one(first: str, operation: str) -> None:
    model = network()
    matrices = optim.Muon([p for p in model.parameters() if p.dim() == 2])
    vectors = optim.AdamW([p for p in model.parameters() if p.dim() < 2])
    both = [matrices, vectors] if first == "matrices" else [vectors, matrices]

    def step() -> None:
        model.zero_grad()
        model(batches(1)[0][0]).square().sum().backward()
        for each in both:
            each.step()

    step()
    before = list(map(held, both))
    outcome = OPERATIONS[operation](model)
    for each in both:
        surgery.follow(each, outcome)
    step()
    held_now = [p for each in both for group in each.param_groups for p in group["params"]]
    assert sorted(map(id, held_now)) == sorted(map(id, model.parameters()))
    assert all(p.dim() == 2 for p in matrices.param_groups[0]["params"])
    outcome.undo()
    for each in both:
        surgery.follow(each, outcome)
    for now, then in zip(map(held, both), before, strict=True):
        assert same(now["groups"], then["groups"])
    step()


def test_of_an_optimizer_of_matrices_vectors_are_carried() -> None:
    library = pytest.importorskip("timm.optim")
    model = network()
    optimizer = library.Muon(model.parameters(), lr=0.01)
    train(model, optimizer, batches(3))
    states = {
        moved.address: moved.state
        for moved in surgery.follow(optimizer, OPERATIONS["more"](model)).moved
    }
    assert states == {"4.weight": "starts anew", "4.bias": "carried"}
    # Unless it was told to step a matrix as others do.
    model = network()
    named = [[*model[:4].parameters()], [*model[4].parameters()]]
    optimizer = library.Muon(
        [{"params": named[0]}, {"params": named[1], "use_fallback": True}], lr=0.01
    )
    train(model, optimizer, batches(3))
    followed = surgery.follow(optimizer, OPERATIONS["more"](model))
    assert {moved.state for moved in followed.moved} == {"carried"}
    train(model, optimizer, batches(1))
