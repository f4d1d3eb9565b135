"""Through each wrapper a change holds and trains, or it is refused with a remedy that does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel

from surgery import tree
from surgery.errors import AddressError, WrappedModelError
from tests.strategies import module_trees


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x).relu())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(8, 3)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """One process, and a file instead of a port."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def moves_in_two_steps(model: nn.Module, part: nn.Module, x: Tensor) -> bool:
    """Whether each of two training steps moves every parameter of a part."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = True
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in part.parameters()]
        step(model, optimizer, x)
        pairs = zip(before, part.parameters(), strict=True)
        moved &= all(not torch.equal(old, new) for old, new in pairs)
    return moved


# Addresses do not see the wrapper.


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "data parallel": nn.DataParallel,
    "checkpoint": checkpoint_wrapper,
}


@given(module_trees(), st.lists(st.sampled_from(sorted(WRAPPED)), min_size=1, unique=True))
def test_a_wrapped_model_has_the_addresses_of_the_bare_one(
    model: nn.Module, wrappers: list[str]
) -> None:
    wrapped = model
    for wrapper in wrappers:
        wrapped = WRAPPED[wrapper](wrapped)
    assert tree.unwrap(wrapped) is model
    assert list(tree.walk(wrapped)) == list(tree.walk(model))
    bare, index = tree.index(model), tree.index(wrapped)
    assert index.root is model
    assert index.addresses(wrapped) == bare.addresses(model)
    assert [entry.addresses for entry in index.tensors.values()] == [
        entry.addresses for entry in bare.tensors.values()
    ]
    for name, module in wrapped.named_modules(remove_duplicate=False):
        assert tree.get(wrapped, name) is tree.unwrap(module)


@given(module_trees(), st.sampled_from(sorted(WRAPPED)), st.data())
def test_a_wrapper_inside_the_tree_is_passed_through(
    model: nn.Module, wrapper: str, data: st.DataObject
) -> None:
    addresses = [address for address, _ in tree.walk(model) if address]
    assume(addresses)
    address = data.draw(st.sampled_from(addresses))
    bare = [(place, tree.unwrap(module)) for place, module in tree.walk(model)]
    wrapped = WRAPPED[wrapper](tree.get_module(model, address))

    tree.put(model, address, wrapped)
    assert list(tree.walk(model)) == bare
    for name, module in model.named_modules(remove_duplicate=False):
        assert tree.get(model, name) is tree.unwrap(module)

    assert tree.put(model, address, nn.Identity()) is wrapped
    tree.put(model, address, wrapped)
    owner, name = tree.split(address)
    assert tree.get_module(model, owner)._modules[name] is wrapped


# Names that only look like a wrapper's.


class Ordinary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 2))
        self._orig_mod = nn.Linear(2, 2)
        self.fc = nn.Linear(2, 2)


@pytest.mark.parametrize("wrapper", ["none", *WRAPPED])
def test_a_submodule_may_be_called_as_wrappers_call_theirs(wrapper: str) -> None:
    bare = Ordinary()
    model = WRAPPED.get(wrapper, lambda model: model)(bare)
    assert tree.get(model, "module") is bare.module
    assert tree.get(model, "module.0.weight") is bare.module[0].weight
    assert tree.get(model, "_orig_mod.weight") is bare._orig_mod.weight
    new = nn.Linear(2, 2)
    tree.put(model, "module.0", new)
    assert bare.module[0] is new
    for name, parameter in model.named_parameters():
        assert tree.get(model, name) is parameter


def test_a_wrapper_name_means_nothing_where_no_wrapper_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for address in ("module.0", "_orig_mod.0.weight", "0.module.weight"):
        with pytest.raises(AddressError):
            tree.get(model, address)
    wrapped = nn.DataParallel(model)
    for address in ("_orig_mod.0", "module.module.0", "any.0"):
        with pytest.raises(AddressError):
            tree.get(wrapped, address)


def test_put_through_a_literal_name_reaches_the_same_owner() -> None:
    bare = Ordinary()
    model = nn.DataParallel(bare)
    new = nn.Linear(2, 2)
    # Inside the submodule called "module" there is no "fc": the first name is the wrapper's.
    tree.put(model, "module.fc", new)
    assert bare.fc is new
    assert "fc" not in bare.module._modules


# torch.compile: reached through.


@pytest.mark.usefixtures("compiler")
def test_a_layer_put_into_a_compiled_model_trains(x: Tensor) -> None:
    net = Net()
    model = torch.compile(net, backend="eager")
    assert model(x).shape == (8, 2)
    tree.check_changeable(model, "fc")
    new = nn.Linear(4, 7)
    old = tree.put(model, "fc", new)
    assert net.fc is new
    assert model(x).shape == (8, 7)
    assert moves_in_two_steps(model, new, x)
    assert isinstance(old, nn.Linear)
    assert old.weight.grad is None


@pytest.mark.usefixtures("compiler")
def test_a_layer_put_into_a_compiled_part_trains(x: Tensor) -> None:
    model = Net()
    compiled = model.backbone = torch.compile(model.backbone, backend="eager")
    model(x)
    tree.check_changeable(model, "backbone.2")
    new = nn.Linear(4, 4)
    tree.put(model, "backbone.2", new)
    assert model.backbone is compiled
    assert "backbone._orig_mod.2.weight" in model.state_dict()
    assert tree.get(model, "backbone._orig_mod.2") is tree.get(model, "backbone.2") is new
    assert moves_in_two_steps(model, new, x)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("address", ["0", "0._orig_mod"])
def test_a_compiled_layer_is_replaced_with_its_wrapper(address: str, x: Tensor) -> None:
    compiled = torch.compile(nn.Linear(3, 2), backend="eager")
    model = nn.Sequential(compiled, nn.Flatten())
    assert model(x).shape == (8, 2)
    new = nn.Linear(3, 7)
    assert tree.put(model, address, new) is compiled
    assert model[0] is new
    assert model(x).shape == (8, 7)
    assert moves_in_two_steps(model, new, x)
    tree.put(model, "0", compiled)
    assert model(x).shape == (8, 2)


@pytest.mark.usefixtures("compiler")
def test_the_wrapper_itself_would_go_on_calling_the_old_layer(x: Tensor) -> None:
    compiled = torch.compile(nn.Linear(3, 2), backend="eager")
    compiled._modules["_orig_mod"] = nn.Linear(3, 7)
    assert compiled(x).shape == (8, 2)


@pytest.mark.usefixtures("compiler")
def test_wrappers_in_wrappers(x: Tensor) -> None:
    net = Net()
    net.backbone = checkpoint_wrapper(net.backbone)
    model = checkpoint_wrapper(torch.compile(checkpoint_wrapper(net), backend="eager"))
    new = nn.Linear(4, 7)
    tree.put(model, "fc", new)
    assert tree.unwrap(model) is net
    assert moves_in_two_steps(model, new, x)


# Activation checkpointing: reached through.


def test_a_layer_put_into_a_checkpointed_part_trains(x: Tensor) -> None:
    model = Net()
    model.backbone = checkpoint_wrapper(model.backbone)
    tree.check_changeable(model, "backbone.2")
    new = nn.Linear(4, 4)
    tree.put(model, "backbone.2", new)
    assert [name for name, _ in model.backbone.named_parameters()] == [
        tree.split(entry.address)[0].removeprefix("backbone.") + "." + entry.address.split(".")[-1]
        for entry in tree.index(model).of_kind("parameter")
        if entry.address.startswith("backbone")
    ]
    assert moves_in_two_steps(model, new, x)


# DataParallel: refused, though a single device would take it.


def test_data_parallel_refuses_and_the_remedy_trains(x: Tensor) -> None:
    model = DataParallel(Net())
    with pytest.raises(WrappedModelError, match="DataParallel") as refused:
        tree.check_changeable(model, "fc")
    assert refused.value.where == "fc"
    assert refused.value.fix == "operate on model.module, then wrap it again"

    new = nn.Linear(4, 7)
    tree.check_changeable(model.module, "fc")
    tree.put(model.module, "fc", new)
    again = DataParallel(model.module)
    assert moves_in_two_steps(again, new, x)


# DistributedDataParallel: refused, because it breaks.


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_refuses_and_the_remedy_trains(x: Tensor) -> None:
    model = DistributedDataParallel(Net())
    with pytest.raises(WrappedModelError, match="second step") as refused:
        tree.check_changeable(model)
    assert refused.value.fix == "operate on model.module, then wrap it again"

    new = nn.Linear(4, 7)
    tree.put(model.module, "fc", new)
    again = DistributedDataParallel(model.module)
    assert moves_in_two_steps(again, new, x)


@pytest.mark.usefixtures("process_group")
def test_what_is_refused_fails_at_the_second_step(x: Tensor) -> None:
    model = DistributedDataParallel(Net())
    tree.put(model, "fc", nn.Linear(4, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, optimizer, x)
    with pytest.raises(RuntimeError, match="finished reduction"):
        step(model, optimizer, x)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("outer", ["none", "compile"])
def test_only_what_is_inside_the_wrapper_is_refused(outer: str, x: Tensor) -> None:
    net = Net()
    net.backbone = DistributedDataParallel(net.backbone)
    model = torch.compile(net, backend="eager") if outer == "compile" else net
    for address in ("backbone", "backbone.0", "backbone.0.weight", "backbone.module.0.weight"):
        with pytest.raises(WrappedModelError) as refused:
            tree.check_changeable(model, address)
        remedy = str(refused.value.fix).removeprefix("operate on ").split(",")[0]
        assert eval(remedy, {"model": model}) is net.backbone.module

    tree.check_changeable(model, "fc")
    tree.check_changeable(model)
    new = nn.Linear(4, 7)
    tree.put(net, "fc", new)
    assert moves_in_two_steps(net, new, x)


# FSDP, both kinds: refused.


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.parametrize("flat", [False, True])
def test_fsdp_refuses_and_the_remedy_trains(flat: bool, x: Tensor) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    def shard(module: nn.Module) -> nn.Module:
        device = torch.device("cpu")
        return FullyShardedDataParallel(module, device_id=device, use_orig_params=not flat)

    net = Net()
    names = [name for name, _ in net.named_parameters()]
    addresses = [address for address, _ in tree.walk(net)]
    net.fc = shard(net.fc)
    model = shard(net)
    assert [address for address, _ in tree.walk(model)] == addresses
    assert all(isinstance(tree.get(model, name), Tensor) for name in names)
    with pytest.raises(WrappedModelError, match="shards") as refused:
        tree.check_changeable(model, "fc")
    assert "model._fsdp_wrapped_module" in str(refused.value.fix)

    whole = Net()
    new = nn.Linear(4, 7)
    tree.put(whole, "fc", new)
    assert moves_in_two_steps(shard(whole), new if not flat else whole, x)


@pytest.mark.usefixtures("process_group")
def test_fully_shard_refuses_and_the_remedy_trains(x: Tensor) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = Net()
    addresses = [entry.addresses for entry in tree.index(model).tensors.values()]
    fully_shard(model.backbone, mesh=mesh)
    tree.check_changeable(model, "fc")
    fully_shard(model, mesh=mesh)
    assert [entry.addresses for entry in tree.index(model).tensors.values()] == addresses
    with pytest.raises(WrappedModelError, match="shards") as refused:
        tree.check_changeable(model, "fc")
    assert refused.value.fix == "operate before fully_shard()"

    whole, new = Net(), nn.Linear(4, 7)
    tree.put(whole, "fc", new)
    fully_shard(whole, mesh=mesh)
    assert moves_in_two_steps(whole, whole.fc, x)
    assert whole.fc is new


# Recognised without being imported.


def test_wrappers_are_recognised_without_importing_them() -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from surgery import tree\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
        "tree.check_model(model); tree.check_changeable(model); tree.index(model)\n"
        "new = {name for name in set(sys.modules) - before if not name.startswith('surgery')}\n"
        "print(sorted(name for name in new if name.startswith('torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
