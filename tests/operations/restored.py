"""What must be equal for a model to be restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgery
from surgery import tree
from surgery.operations.names import remembered
from surgery.operations.norms import stays_in_eval
from surgery.operations.plan import Outcome
from tests.strategies import leaves


def restored(model: nn.Module, target: Any, folder: Path, **options: Any) -> Outcome:
    """Save a model and make it again from what the target makes."""
    saved = surgery.save(model, folder / "model.safetensors", overwrite=True)
    return surgery.restore(target, saved.path, **options)


def facts(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a file brings back, modes aside."""
    index = tree.index(model)
    slots = {"parameter", "buffer"}
    tensors = {
        entry.addresses: (
            entry.kind,
            entry.tensor.dtype,
            # How far it is to the next of one says nothing.
            [s for s, n in zip(entry.tensor.stride(), entry.tensor.shape, strict=True) if n > 1],
            entry.tensor.requires_grad,
            entry.tensor.detach().clone(),
        )
        for entry in index.tensors.values()
        if entry.kind in slots
    }
    modules = {
        addresses: (tree.class_name(type(module)), stays_in_eval(module), module.extra_repr())
        for module, addresses in index.modules.values()
    }
    return {"tensors": tensors, "modules": modules, "classes": remembered(model)}


def modes(model: nn.Module) -> dict[str, bool]:
    return {address: module.training for address, module in tree.walk(model)}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Both models are equal in all that a file brings back."""
    ours, theirs = facts(one), facts(other)
    assert ours["modules"] == theirs["modules"]
    assert ours["classes"] == theirs["classes"]
    assert ours["tensors"].keys() == theirs["tensors"].keys()
    for addresses, (*about, value) in ours["tensors"].items():
        *also, found = theirs["tensors"][addresses]
        assert about == also, addresses
        assert torch.equal(value.nan_to_num(), found.nan_to_num()), addresses
    assert list(one.state_dict()) == list(other.state_dict())


def assert_answers(one: nn.Module, other: nn.Module, example: Any) -> None:
    """Both models answer the same, bit for bit, in eval mode; and have one mode after `train`."""
    with torch.no_grad():
        answers = [leaves(model.eval()(example)) for model in (one, other)]
    assert answers[0].keys() == answers[1].keys()
    assert all(torch.equal(answers[0][path], answers[1][path]) for path in answers[0])
    one.train()
    other.train()
    assert modes(one) == modes(other)
