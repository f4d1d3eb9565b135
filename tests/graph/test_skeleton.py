"""The copy that runs in a model's place."""

from __future__ import annotations

import functools
import threading
from operator import attrgetter
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

from surgery import tree
from surgery.graph.skeleton import REAL_STATE_LIMIT, build_skeleton
from tests.strategies import HOSTILE, Hostile, module_trees


def tensors_and_modules(model: nn.Module) -> set[int]:
    found = tree.index(model)
    return {*found.tensors, *found.modules}


def likeness(model: nn.Module) -> list[Any]:
    """What a copy has in common with its model: everything but identities and devices."""
    found = tree.index(model)
    entries = found.tensors.values()
    return [
        [parameter.requires_grad for parameter in model.parameters()],
        [
            (kind, addresses, tensor.shape, tensor.stride(), tensor.dtype, type(tensor))
            for tensor, kind, addresses in map(attrgetter("tensor", "kind", "addresses"), entries)
        ],
        [
            (type(module), addresses, module.training, list(module._modules))
            for module, addresses in found.modules.values()
        ],
    ]


@given(module_trees())
def test_a_copy_is_like_the_model_and_shares_nothing(model: nn.Module) -> None:
    skeleton = build_skeleton(model)
    assert likeness(skeleton.model) == likeness(model)
    assert not tensors_and_modules(skeleton.model) & tensors_and_modules(model)
    assert not skeleton.shared


@given(module_trees())
def test_floating_state_has_no_values_and_small_integers_have(model: nn.Module) -> None:
    for original, stand_in in build_skeleton(model).stand_ins.items():
        tensor = tree.index(model).tensors[original].tensor
        if tensor.dtype.is_floating_point and isinstance(tensor, nn.Parameter):
            assert stand_in.is_meta
        if not tensor.dtype.is_floating_point:
            assert torch.equal(stand_in, tensor)
            assert stand_in.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_hostile_model_is_copied(hostile: Hostile) -> None:
    model = hostile.make()
    skeleton = build_skeleton(model)
    assert likeness(skeleton.model) == likeness(model)
    assert not tensors_and_modules(skeleton.model) & tensors_and_modules(model)


def test_real_stand_ins_share_parameters_and_copy_buffers() -> None:
    model = nn.BatchNorm1d(4)
    copy = build_skeleton(model, "real").model
    assert copy.weight is not model.weight
    assert copy.weight.data_ptr() == model.weight.data_ptr()
    assert copy.running_mean.data_ptr() != model.running_mean.data_ptr()
    copy.weight.data.add_(0)
    assert model.weight._version == nn.BatchNorm1d(4).weight._version


def test_integer_state_beyond_the_limit_goes_to_meta() -> None:
    model = nn.Module()
    model.register_buffer("small", torch.zeros(REAL_STATE_LIMIT, dtype=torch.int8))
    model.register_buffer("large", torch.zeros(REAL_STATE_LIMIT + 1, dtype=torch.int8))
    copy = build_skeleton(model).model
    assert not copy.small.is_meta
    assert copy.large.is_meta


class Lock:
    """Refuses to be copied, as open files and locks do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_what_refuses_to_be_copied_is_shared_and_named() -> None:
    model = nn.Linear(2, 2)
    model.lock = Lock()
    skeleton = build_skeleton(model)
    assert skeleton.model.lock is model.lock
    (words,) = skeleton.shared
    assert "Lock" in words
    assert "shared" in words


class Settings:
    def __init__(self, number: int) -> None:
        self.number = number


def test_many_objects_are_copied_whatever_ids_are_used_again() -> None:
    model = nn.Linear(2, 2)
    for number in range(60):
        setattr(model, f"settings{number}", Settings(number))
    for _ in range(20):
        skeleton = build_skeleton(model)
        assert skeleton.shared == ()
        for number in range(60):
            copied = getattr(skeleton.model, f"settings{number}")
            assert type(copied) is Settings
            assert copied.number == number
            assert copied is not getattr(model, f"settings{number}")


class Helper:
    """An object of the user's own that refers back to the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weight = model.fc.weight


class Referring(nn.Module):
    """Refers to its own parts in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.helper = Helper(self)
        self.hidden = [nn.Linear(2, 2)]
        self.table = {"fc": self.fc, "weights": (self.fc.weight, 1)}
        self.method = self.forward
        self.partial = functools.partial(nn.functional.linear, weight=self.fc.weight)
        self.names = {"a", "b"}
        self.itself: list[Any] = [self.names]
        self.itself.append(self.itself)
        self.generator = torch.Generator()
        self.act = torch.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.partial(x)


def test_every_reference_leads_to_the_copy() -> None:
    model = Referring()
    copy = build_skeleton(model).model
    assert copy.helper.model is copy
    assert copy.helper.weight is copy.fc.weight
    assert copy.table["fc"] is copy.fc
    assert copy.table["weights"] == (copy.fc.weight, 1)
    assert copy.table["weights"][0] is copy.fc.weight
    assert copy.method.__self__ is copy
    assert copy.partial.keywords["weight"] is copy.fc.weight
    assert copy.hidden[0] is not model.hidden[0]
    assert copy.hidden[0].weight.is_meta
    assert copy.names == model.names
    assert copy.names is not model.names
    assert copy.itself[1] is copy.itself
    assert copy.generator is not model.generator
    assert copy.act is torch.relu
    assert model.helper.model is model


class Slotted(nn.Module):
    __slots__ = ("kept",)

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "kept", [1])


def test_slots_are_copied() -> None:
    model = Slotted()
    copy = build_skeleton(model).model
    assert copy.kept == [1]
    assert copy.kept is not model.kept


def test_wrappers_are_passed_through() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    wrapped = nn.DataParallel(nn.Sequential(torch.compile(model)))
    copy = build_skeleton(wrapped).model
    assert [type(module) for _, module in tree.walk(copy)] == [
        nn.Sequential,
        nn.Sequential,
        nn.Linear,
    ]
    assert [type(module) for module in copy.modules()] == [nn.Sequential, nn.Sequential, nn.Linear]
