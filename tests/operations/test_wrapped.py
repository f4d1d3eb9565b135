"""Operations on wrapped models: they hold and train, or they are refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

import surgery
from surgery import tree
from surgery.errors import WrappedModelError
from surgery.operations.plan import Outcome
from tests.operations.state import content, differences, state_of

EXAMPLE = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 2
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x).relu())


VERBS: dict[str, Callable[[nn.Module], Outcome]] = {
    "replace_head": lambda m: surgery.replace_head(m, 7, example=EXAMPLE),
    "hidden": lambda m: surgery.replace_head(m, 7, hidden=(5,), example=EXAMPLE),
    "remove_head": lambda m: surgery.remove_head(m, example=EXAMPLE),
    "replace": lambda m: surgery.replace(m, {"backbone.2": nn.Linear(4, 4)}, example=EXAMPLE),
    "freeze": lambda m: surgery.freeze(m, "backbone"),
    "unfreeze": lambda m: surgery.unfreeze(m, "backbone"),
}


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


def moved_by_training(model: nn.Module, part: nn.Module) -> bool:
    """Whether each of two training steps moves every parameter of a part."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = True
    for _ in range(2):
        before = [content(parameter) for parameter in part.parameters()]
        optimizer.zero_grad()
        (model(EXAMPLE) + 1).square().mean().backward()
        optimizer.step()
        moved &= all(content(p) != old for p, old in zip(part.parameters(), before, strict=True))
    return moved


def _compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("verb", ["replace_head", "hidden", "replace"])
def test_a_compiled_model_is_operated_on_and_trains(verb: str) -> None:
    net = Net()
    model = _compiled(net)
    assert model(EXAMPLE).shape == (4, 2)
    before = {name: content(p) for name, p in net.named_parameters()}
    outcome = VERBS[verb](model)
    assert outcome.model is model
    assert model(EXAMPLE).shape == (4, 2 if verb == "replace" else 7)
    part = net.backbone[2] if verb == "replace" else net.fc
    assert moved_by_training(model, part)
    assert outcome.undo() is model
    assert model(EXAMPLE).shape == (4, 2)
    assert {n for n, p in net.named_parameters() if content(p) == before[n]} >= {
        "backbone.2.weight" if verb == "replace" else "fc.weight"
    }
    assert moved_by_training(model, net.fc)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("wrapper", [_compiled, checkpoint_wrapper], ids=["compile", "checkpoint"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_model_with_a_wrapped_part_is_operated_on(
    verb: str, wrapper: Callable[[nn.Module], nn.Module]
) -> None:
    model = Net()
    model.backbone = wrapper(model.backbone)
    model.fc = wrapper(model.fc)
    before = state_of(model, process=False)
    outcome = VERBS[verb](model)
    model(EXAMPLE)
    outcome.undo()
    # Compiling leaves marks on parameters.
    found = differences(before, state_of(model, process=False))
    assert not [each for each in found if "_dynamo" not in each and ": names:" not in each]
    assert model(EXAMPLE).shape == (4, 2)


@pytest.mark.usefixtures("compiler")
def test_a_compiled_module_may_be_installed() -> None:
    model = Net()
    model.backbone.register_forward_hook(_nothing)
    new = _compiled(nn.Sequential(nn.Linear(3, 4), nn.Dropout()))
    model.backbone.eval()
    outcome = surgery.replace(model, {"backbone": new}, example=EXAMPLE)
    assert model.backbone is new
    inner = tree.unwrap(new)
    assert not any(module.training for module in inner.modules())
    assert inner._forward_hooks
    assert model(EXAMPLE).shape == (4, 2)
    outcome.undo()
    assert inner.training
    assert not inner._forward_hooks
    model.backbone.train()
    model(EXAMPLE)


def _nothing(*_: object) -> None:
    return None


def refused(model: nn.Module, verb: str) -> str:
    before = state_of(model, process=False)
    with pytest.raises(WrappedModelError) as caught:
        VERBS[verb](model)
    assert not differences(before, state_of(model, process=False))
    return str(caught.value.fix)


@pytest.mark.parametrize("verb", VERBS)
def test_data_parallel_is_refused_and_the_remedy_works(verb: str) -> None:
    model = nn.DataParallel(Net())
    assert "model.module" in refused(model, verb)
    outcome = VERBS[verb](model.module)
    again = nn.DataParallel(model.module)
    assert again(EXAMPLE).shape == outcome.model(EXAMPLE).shape
    outcome.undo()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("verb", VERBS)
def test_distributed_data_parallel_is_refused_and_the_remedy_works(verb: str) -> None:
    model = DistributedDataParallel(Net())
    assert "model.module" in refused(model, verb)
    bare = model.module
    VERBS[verb](bare)
    if verb in ("replace_head", "hidden"):
        assert moved_by_training(DistributedDataParallel(bare), bare.fc)


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_sharded_models_are_refused(verb: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    flat = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)
    with pytest.raises(WrappedModelError, match="shards"):
        VERBS[verb](flat)
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(WrappedModelError, match="shards"):
        VERBS[verb](model)


@pytest.mark.parametrize("verb", ["replace_head", "remove_head"])
def test_a_head_inside_a_parallel_part_is_refused(verb: str) -> None:
    model = Net()
    model.fc = nn.DataParallel(model.fc)
    refused(model, verb)


@pytest.mark.parametrize("verb", ["replace", "freeze"])
def test_what_lies_inside_a_parallel_part_is_refused(verb: str) -> None:
    model = Net()
    model.backbone = nn.DataParallel(model.backbone)
    refused(model, verb)
    outcome = VERBS["replace_head"](model)
    assert model.fc.weight.shape == (7, 4)
    outcome.undo()


def test_reading_goes_through_what_changing_is_refused_in() -> None:
    model = nn.DataParallel(Net())
    assert [head.address for head in surgery.find_heads(model, EXAMPLE)] == ["fc"]
    assert surgery.audit(model).total == sum(p.numel() for p in model.parameters())
