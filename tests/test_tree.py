"""Addresses are a lens: each leads to one thing, and putting it back leaves no trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from surgery import tree
from surgery.errors import AddressError, ArgumentError, UnsupportedModelError
from tests.strategies import module_trees


def members(model: nn.Module) -> dict[tuple[int, str, str], int]:
    """Every slot of every module, in order, and the identity of what is in it."""
    return {
        (id(module), where, name): id(value)
        for module in model.modules()
        for where in ("_modules", "_parameters", "_buffers", "__dict__")
        for name, value in getattr(module, where).items()
    }


def plain_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (tree.join(address, name), value)
        for address, module in model.named_modules(remove_duplicate=False)
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]


def something_like(value: tree.Member) -> tree.Member:
    """Another thing of the same sort."""
    if isinstance(value, nn.Module):
        return nn.Identity()
    if isinstance(value, nn.Parameter):
        return nn.Parameter(torch.zeros(3))
    return torch.zeros(3)


@st.composite
def slots(draw: st.DrawFn) -> tuple[nn.Module, str]:
    """A model, and an address in it that is not the root."""
    model = draw(module_trees())
    index = tree.index(model)
    found = [address for _, every in index.modules.values() for address in every if address]
    found += [address for entry in index.tensors.values() for address in entry.addresses]
    assume(found)
    return model, draw(st.sampled_from(found))


# Laws.


@given(module_trees())
def test_walk_is_named_modules(model: nn.Module) -> None:
    expected = list(model.named_modules(remove_duplicate=False))
    assert list(tree.walk(model)) == expected


@given(module_trees())
def test_the_index_holds_exactly_what_torch_names(model: nn.Module) -> None:
    index = tree.index(model)
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
        *plain_tensors(model),
    ]
    pairs = [
        (address, id(entry.tensor))
        for entry in index.tensors.values()
        for address in entry.addresses
    ]
    assert sorted(pairs) == sorted((name, id(tensor)) for name, tensor in named)
    assert len(pairs) == len(set(pairs))
    for name, module in model.named_modules(remove_duplicate=False):
        assert name in index.addresses(module)


@given(module_trees())
def test_the_index_is_in_the_order_of_torch(model: nn.Module) -> None:
    index = tree.index(model)
    modules = [(addresses[0], module) for module, addresses in index.modules.values()]
    assert modules == list(model.named_modules())
    assert [entry.address for entry in index.of_kind("parameter")] == [
        name for name, _ in model.named_parameters()
    ]
    assert [entry.address for entry in index.of_kind("buffer")] == [
        name for name, _ in model.named_buffers()
    ]
    order = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for entry in index.of_kind("parameter"):
        assert sorted(entry.addresses, key=order.index) == list(entry.addresses)


@given(module_trees())
def test_every_address_gets_the_thing_itself(model: nn.Module) -> None:
    index = tree.index(model)
    for module, addresses in index.modules.values():
        assert all(tree.get(model, address) is module for address in addresses)
    for entry in index.tensors.values():
        assert all(tree.get(model, address) is entry.tensor for address in entry.addresses)
        assert index.addresses(entry.tensor) == entry.addresses
    assert index.addresses(nn.Identity()) == index.addresses(torch.zeros(1)) == ()


@given(slots())
def test_put_then_get_then_put_back(case: tuple[nn.Module, str]) -> None:
    model, address = case
    before = members(model)
    old = tree.get(model, address)
    new = something_like(old)
    owner, name = tree.split(address)

    assert tree.put(model, address, new) is old
    assert tree.get(model, address) is new
    changed = {key for key, value in members(model).items() if before.get(key) != value}
    here = {key for key in changed if key[0] != id(new)}
    assert {(key[0], key[2]) for key in here} == {(id(tree.get(model, owner)), name)}

    assert tree.put(model, address, old) is new
    after = members(model)
    assert after == before
    assert list(after) == list(before)


@given(slots())
def test_putting_the_same_thing_changes_nothing(case: tuple[nn.Module, str]) -> None:
    model, address = case
    before = list(members(model).items())
    tree.put(model, address, tree.get(model, address))
    assert list(members(model).items()) == before


@given(st.lists(st.from_regex(r"[a-z0-9_]+", fullmatch=True), min_size=1, max_size=5))
def test_join_undoes_split(names: list[str]) -> None:
    address = ".".join(names)
    assert tree.join(*tree.split(address)) == address
    assert tree.split(tree.join(address, "weight")) == (address, "weight")


# Sharing.


def test_two_names_in_one_parent() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Module()
    model.first, model.second = layer, layer
    index = tree.index(model)
    assert index.addresses(layer) == ("first", "second")
    assert index.addresses(layer.weight) == ("first.weight", "second.weight")
    tree.put(model, "second", nn.Identity())
    assert model.first is layer


def test_a_module_that_contains_itself_is_entered_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("again", model)
    other = nn.Module()
    other.inner = nn.Sequential(model)
    model.add_module("other", other)
    assert [address for address, _ in tree.walk(model)] == ["", "0", "other", "other.inner"]
    assert tree.get(model, "again.again.0") is model[0]
    assert tree.check_model(model) is model


def test_an_empty_slot_is_no_member() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model.register_module("head", None)
    assert [address for address, _ in tree.walk(model)] == ["", "0"]
    for address in ("head", "head.weight", "0.bias"):
        with pytest.raises(AddressError):
            tree.get(model, address)


def test_a_parameter_hung_under_a_plain_attribute_too() -> None:
    model = nn.Linear(2, 2)
    vars(model)["shortcut"] = model.weight
    entry = tree.index(model).tensors[id(model.weight)]
    assert (entry.kind, entry.addresses) == ("parameter", ("weight", "shortcut"))

    new = nn.Parameter(torch.zeros(2, 2))
    tree.put(model, "shortcut", new)
    assert vars(model)["shortcut"] is new
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]


def test_a_parameter_that_is_a_buffer_elsewhere_is_a_parameter() -> None:
    layer = nn.Linear(2, 2)
    view = nn.Module()
    view.register_buffer("weight", layer.weight)
    model = nn.Sequential(view, layer)
    entry = tree.index(model).tensors[id(layer.weight)]
    assert (entry.kind, entry.addresses) == ("parameter", ("1.weight", "0.weight"))
    assert sum(e.tensor.numel() for e in tree.index(model).of_kind("parameter")) == 6

    tree.put(model, "0.weight", nn.Parameter(torch.zeros(2, 2)))
    assert list(view._buffers) == ["weight"]
    assert not view._parameters


def test_an_attribute_behind_a_parameter_of_the_same_name_is_not_seen() -> None:
    model = nn.Linear(2, 2)
    vars(model)["weight"] = torch.zeros(2, 2)
    assert tree.get(model, "weight") is model._parameters["weight"]
    assert [entry.address for entry in tree.index(model).tensors.values()] == ["weight", "bias"]


def test_a_buffer_stays_as_persistent_as_it_was() -> None:
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(2))
    model.register_buffer("lost", torch.zeros(2), persistent=False)
    tree.put(model, "kept", torch.ones(2))
    tree.put(model, "lost", torch.ones(2))
    assert list(model.state_dict()) == ["kept"]


# Containers and layers that keep lists.


CONTAINERS: dict[str, tuple[nn.Module, str]] = {
    "Sequential": (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "1"),
    "ModuleList": (nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)]), "1"),
    "ModuleDict": (nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ReLU(), "c": nn.ReLU()}), "b"),
    "ParameterList": (nn.ParameterList([torch.zeros(1), torch.zeros(2), torch.zeros(3)]), "1"),
    "ParameterDict": (nn.ParameterDict({"a": torch.zeros(1), "b": torch.zeros(2)}), "b"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_see_what_was_put(name: str) -> None:
    container, address = CONTAINERS[name]
    model = nn.ModuleDict({"box": container})
    items: Any = container
    key: Any = int(address) if address.isdigit() else address
    order = list(items.keys()) if hasattr(items, "keys") else None
    old, new = items[key], something_like(items[key])
    assert tree.put(model, f"box.{address}", new) is old
    assert items[key] is new
    assert len(items) == len(list(items))
    assert order is None or list(items.keys()) == order
    tree.put(model, f"box.{address}", old)


def test_an_lstm_computes_with_the_weights_that_were_put() -> None:
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    other = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    model, x = nn.ModuleDict({"lstm": lstm}), torch.randn(5, 1, 3)
    assert not torch.equal(lstm(x)[0], other(x)[0])
    for name, weight in other.named_parameters():
        tree.put(model, f"lstm.{name}", weight)
    assert [id(weight) for weight in lstm._flat_weights] == [
        id(weight) for weight in other._flat_weights
    ]
    assert torch.equal(lstm(x)[0], other(x)[0])


# Parametrizations, norms and pruning.


def train_two_steps(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def old_weight_norm(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer)


COMPUTED: dict[str, tuple[Callable[[Any], object], str]] = {
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original1"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original"),
    "orthogonal": (parametrizations.orthogonal, "parametrizations.weight.original"),
    "old weight_norm": (old_weight_norm, "weight_v"),
    "old spectral_norm": (nn.utils.spectral_norm, "weight_orig"),
    "pruning": (lambda layer: prune.random_unstructured(layer, "weight", 0.5), "weight_orig"),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_the_tensors_behind_a_computed_one_can_be_put_and_train(name: str) -> None:
    compute, source = COMPUTED[name]
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    compute(model[1])
    x = torch.randn(5, 3)
    index, before = tree.index(model), model(x)
    assert [entry.address for entry in index.of_kind("parameter")] == [
        name for name, _ in model.named_parameters()
    ]
    new = nn.Parameter(torch.randn(4, 4))
    old = tree.put(model, f"1.{source}", new)
    assert not torch.equal(model(x), before)

    start = new.detach().clone()
    train_two_steps(model, x)
    assert not torch.equal(new, start)
    assert index.addresses(old) == (f"1.{source}",)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_tensor_is_not_put_and_its_sources_are_named(name: str) -> None:
    compute, source = COMPUTED[name]
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    compute(model[1])
    model(torch.randn(5, 3))
    before = members(model)
    with pytest.raises(AddressError, match=re.escape(source)) as refused:
        tree.put(model, "1.weight", torch.zeros(4, 4))
    assert refused.value.where == "1.weight"
    assert str(refused.value.fix).startswith("use '1.")
    assert tree.get(model, str(refused.value.fix).split("'")[1]) is not None
    assert members(model) == before


# Refusals.


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("fcc", "did you mean 'fc'?"),
        ("fc.weigth", "did you mean 'fc.weight'?"),
        ("backbone.9", "nothing is called '9' in 'backbone', a Sequential"),
        ("fc.weight.data", "'fc.weight' is a tensor"),
        ("backbone.1.weight", "no name: it holds nothing"),
        ("fc.training", "nothing is called 'training'"),
        (".", "nothing is called ''"),
        (3, "a dotted name"),
        (None, "a dotted name"),
    ],
)
def test_an_address_that_leads_nowhere(address: Any, says: str) -> None:
    model = nn.ModuleDict(
        {"backbone": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "fc": nn.Linear(2, 2)}
    )
    for verb in (tree.get, tree.check_changeable):
        with pytest.raises(AddressError, match=re.escape(says)) as refused:
            verb(model, address)
        assert refused.value.fix


def test_a_root_is_not_put() -> None:
    for model, address in [
        (nn.ReLU(), ""),
        (nn.DataParallel(nn.ReLU()), "module"),
        (torch.compile(nn.ReLU(), backend="eager"), "_orig_mod"),
    ]:
        with pytest.raises(AddressError, match="root"):
            tree.put(model, address, nn.ReLU())


@pytest.mark.parametrize(
    ("address", "value"),
    [
        ("0", torch.zeros(2)),
        ("0", None),
        ("0.weight", nn.ReLU()),
        ("0.weight", torch.zeros(2, 2)),
        ("0.weight", None),
        ("1.running_mean", nn.Parameter(torch.zeros(2))),
        ("1.running_mean", 0.0),
    ],
)
def test_a_thing_of_another_sort_is_not_put(address: str, value: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = members(model)
    with pytest.raises(ArgumentError) as refused:
        tree.put(model, address, value)
    assert refused.value.where == address
    assert refused.value.expected != refused.value.found
    assert members(model) == before


def test_get_module_wants_a_module() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(AddressError, match=r"\(3, 2\)"):
        tree.get_module(model, "0.weight")


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(nn.Sequential(nn.Linear(2, 2)), (torch.zeros(1, 2),))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Linear, "the class"),
        (lambda: None, "NoneType"),
        (lambda: nn.ReLU().state_dict(), "OrderedDict"),
        (lambda: torch.compile(torch.relu, backend="eager"), "function"),
        (lambda: exported(), "exported from"),
        (lambda: exported().module(), "exported from"),
        (lambda: torch.export.unflatten(exported()), "exported from"),
        (lambda: torch.jit.script(nn.ReLU()), "scripted"),
        (lambda: nn.Sequential(torch.jit.trace(nn.ReLU(), torch.zeros(1))), "where: 0"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "where: 0.weight"),
        (lambda: nn.DataParallel(nn.LazyBatchNorm1d()), "where: weight"),
    ],
)
def test_what_is_no_model_or_none_yet(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says) as refused:
        tree.check_model(make())
    assert refused.value.fix


def test_a_lazy_model_is_one_after_its_first_batch() -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    model(torch.zeros(1, 3))
    assert tree.check_model(model) is model


def test_a_module_that_setattr_hung_under_a_dotted_name() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    setattr(model, "0.0", nn.Linear(2, 5))
    with pytest.raises(UnsupportedModelError, match="setattr follows no dots") as refused:
        tree.check_model(model)
    assert refused.value.where == "0.0"
