"""An audit counts each tensor once, and however a model is cut up, the parts add up."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torchinfo
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import surgery
from surgery import tree
from surgery.errors import AddressError, ArgumentError
from surgery.tally import Tally
from tests.strategies import HOSTILE, Hostile, module_trees

ROOT = Path(__file__).parents[1]


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def inside(name: str, address: str) -> bool:
    return not address or name.startswith(f"{address}.")


def whole(audit: surgery.Audit) -> Tally:
    return Tally(audit.cells)


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    twin = tensor.detach().to("meta")
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


# Laws over any model.


@given(module_trees())
def test_the_totals_are_those_of_torch(model: nn.Module):
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model)
    assert audit.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert audit.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert audit.buffers == sum(buffer.numel() for buffer in model.buffers())
    assert audit.bytes == bytes_of(model.parameters()) + bytes_of(model.buffers())
    assert audit.total == whole(audit).total
    assert audit.trainable == whole(audit).trainable
    assert 0 <= audit.trainable_ratio <= 1
    assert sum(audit.bytes_by.values()) == audit.bytes


@given(module_trees(), st.data())
def test_the_parts_of_any_partition_add_up(model: nn.Module, data: st.DataObject):
    audit = surgery.audit(model)
    chosen: list[str] = []
    for row in data.draw(st.permutations(audit.rows)):
        apart = not any(
            inside(f"{row.address}.", other) or inside(f"{other}.", row.address) for other in chosen
        )
        if apart and data.draw(st.booleans()):
            chosen.append(row.address)
    parts = [Tally(audit.at(address).cells) for address in chosen]
    rest = [
        row.own
        for row in audit.rows
        if not any(inside(f"{row.address}.", address) for address in chosen)
    ]
    assert sum([*parts, *rest], Tally()) == whole(audit)
    first = dict(model.named_parameters())
    for address, part in zip(chosen, parts, strict=True):
        assert part.total == sum(p.numel() for name, p in first.items() if inside(name, address))


@given(module_trees(), st.integers(0, 5))
def test_rolling_up_keeps_the_totals(model: nn.Module, depth: int):
    audit = surgery.audit(model)
    rolled = audit.roll_up(depth)
    assert sum(rolled.values(), Tally()) == whole(audit)
    assert all(tree.join(address, "x").count(".") <= depth for address in rolled)


@given(module_trees())
def test_a_module_has_what_counts_in_it_and_what_counts_elsewhere(model: nn.Module):
    audit = surgery.audit(model)
    for row in audit.rows:
        module = tree.get_module(model, row.address)
        assert row.type == type(module).__name__
        assert row.total + row.elsewhere == parameters_of(module)
        assert all(audit.at(address) is row for address in row.addresses)


@given(module_trees())
def test_every_address_is_named(model: nn.Module):
    audit, index = surgery.audit(model), tree.index(model)
    held = list(index.of_kind("parameter", "buffer"))
    assert {entry.addresses for entry in audit.shared} == {
        entry.addresses for entry in held if len(entry.addresses) > 1
    }
    assert {row.addresses for row in audit.rows} == {found for _, found in index.modules.values()}


@given(module_trees())
def test_an_audit_is_a_value(model: nn.Module):
    audit = surgery.audit(model)
    assert audit == surgery.audit(copy.deepcopy(model))
    assert hash(audit) == hash(surgery.audit(model))
    assert pickle.loads(pickle.dumps(audit)) == audit
    assert pickle.loads(pickle.dumps(audit)).rows == audit.rows


@given(module_trees())
def test_meta_counts_the_same(model: nn.Module):
    # ``model.to("meta")`` would untie what is tied.
    held = tree.index(model).of_kind("parameter", "buffer")
    twin = copy.deepcopy(model, {id(entry.tensor): on_meta(entry.tensor) for entry in held})
    there = surgery.audit(twin)
    here = surgery.audit(model)
    assert [
        (row.address, row.total, row.trainable, row.buffers, row.bytes) for row in there.rows
    ] == [(row.address, row.total, row.trainable, row.buffers, row.bytes) for row in here.rows]
    assert all(cell.device.type == "meta" for cell in there.cells)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_hostile_models_are_counted_too(hostile: Hostile):
    model = hostile.make()
    assert surgery.audit(model).total == parameters_of(model)


def test_an_audit_keeps_nothing_alive():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    audit = surgery.audit(model)
    assert audit.rows
    gone = [weakref.ref(model), *map(weakref.ref, model.parameters())]
    reached, queue = set(), [audit]
    while queue:
        item = queue.pop()
        assert not isinstance(item, torch.Tensor | nn.Module)
        if id(item) not in reached and not isinstance(item, type):
            reached.add(id(item))
            queue.extend(gc.get_referents(item))
    del model
    gc.collect()
    assert not any(ref() for ref in gone)


def test_an_audit_does_not_touch_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    before = {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    surgery.audit(model)
    after = {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    assert after == before
    assert torch.equal(torch.get_rng_state(), random)


# Against torchinfo, where it is right and where it is not.

ZOO = [
    "resnet18",
    "vgg11_bn",
    "mobilenet_v3_small",
    "googlenet",
    "swin_t",
    "vit_b_32",
    "densenet121",
]


@pytest.mark.parametrize("name", ZOO)
def test_it_agrees_with_torchinfo(name: str):
    with torch.device("meta"):
        keywords = {"init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, **keywords)
    model.requires_grad_(False)
    next(model.children()).requires_grad_(True)
    table = torchinfo.summary(model, verbose=0)
    audit = surgery.audit(model)
    assert (audit.total, audit.trainable) == (table.total_params, table.trainable_params)


def test_it_is_right_on_tied_weights_and_torchinfo_is_not():
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    model[1].weight = model[0].weight
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model) == 400
    assert torchinfo.summary(model, verbose=0).total_params == 800
    assert [entry.addresses for entry in audit.shared] == [("0.weight", "1.weight")]
    assert (audit.at("1").total, audit.at("1").elsewhere) == (0, 400)


def test_it_is_right_on_pruned_weights_and_torchinfo_is_not():
    model = nn.Linear(4, 4, bias=False)
    prune.l1_unstructured(model, "weight", 0.5)
    assert surgery.audit(model).total == parameters_of(model) == 16
    assert torchinfo.summary(model, verbose=0).total_params == 8
    assert surgery.audit(model).buffers == 16


def test_an_unknown_address_is_an_error_that_names_a_near_one():
    audit = surgery.audit(nn.ModuleDict({"features": nn.Linear(2, 2)}))
    with pytest.raises(AddressError, match="'features'"):
        audit.at("feature")


@pytest.mark.parametrize("depth", [-1, 1.0, True, "1", None])
def test_a_depth_that_is_none_is_an_error(depth: Any):
    with pytest.raises(ArgumentError):
        surgery.audit(nn.Linear(2, 2)).roll_up(depth)


def test_counting_needs_no_renderer():
    code = (
        "import sys, torch, surgery\n"
        "audit = surgery.audit(torch.nn.Linear(2, 2)); audit.rows; repr(audit)\n"
        "assert not {'rich', 'torchinfo', 'surgery.reports'} & set(sys.modules)\n"
        "assert 'parameters' in str(audit)\n"
        "assert 'rich' in sys.modules and 'torchinfo' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
