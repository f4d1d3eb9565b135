"""Frozen normalisation layers keep their statistics, and answer in train mode as in eval mode."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from surgery_plugins.resnet import FAMILY
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.families.registry import Registry

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch_norm_1d": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "batch_norm_2d": (lambda: nn.BatchNorm2d(4), (5, 4, 3, 3)),
    "batch_norm_3d": (lambda: nn.BatchNorm3d(4), (5, 4, 2, 2, 2)),
    "batch_norm_without_parameters": (lambda: nn.BatchNorm2d(4, affine=False), (5, 4, 3, 3)),
    "batch_norm_cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (5, 4, 3, 3)),
    "sync_batch_norm": (lambda: nn.SyncBatchNorm(4), (5, 4, 3, 3)),
    "instance_norm_1d": (lambda: nn.InstanceNorm1d(4, track_running_stats=True), (5, 4, 6)),
    "instance_norm_2d": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (5, 4, 3, 3)),
    "instance_norm_3d": (lambda: nn.InstanceNorm3d(4, track_running_stats=True), (5, 4, 2, 2, 2)),
}
AFTERWARDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "compile": lambda model: torch.compile(model, backend="eager"),
}


class Normed(nn.Module):
    """A norm whose statistics differ from those of any batch it sees."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        with torch.no_grad():
            norm.running_mean.fill_(3.0)
            norm.running_var.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


@pytest.mark.parametrize("later", AFTERWARDS)
@pytest.mark.parametrize("name", NORMS)
def test_a_frozen_norm_answers_in_train_mode_what_it_answers_in_eval(name: str, later: str) -> None:
    build, shape = NORMS[name]
    model = Normed(build()).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    surgery.freeze(model)
    other = AFTERWARDS[later](model)
    statistics = {key: value.clone() for key, value in other.state_dict().items()}
    other.train()
    assert torch.equal(other(x), expected)
    assert other.training
    for key, value in other.state_dict().items():
        assert torch.equal(value, statistics[key]), key


# SyncBatchNorm needs a GPU and a process group in train mode.
@pytest.mark.parametrize("name", sorted(set(NORMS) - {"sync_batch_norm"}))
def test_unfreezing_lets_statistics_move_again(name: str) -> None:
    build, shape = NORMS[name]
    model = Normed(build()).train()
    surgery.freeze(model)
    assert not model.norm.training
    surgery.unfreeze(model)
    assert model.norm.training
    assert "train" not in vars(model.norm)
    before = model.norm.running_mean.clone()
    model(torch.randn(shape))
    assert not torch.equal(model.norm.running_mean, before)


def test_a_norm_that_was_left_out_goes_on_moving() -> None:
    model = nn.Sequential(Normed(nn.BatchNorm1d(4)), Normed(nn.BatchNorm1d(4)))
    surgery.freeze(model, except_="1")
    model.train()(torch.randn(5, 4))
    assert model[0].norm.num_batches_tracked == 0
    assert model[1].norm.num_batches_tracked == 1


def test_norm_train_freezes_parameters_alone() -> None:
    model = Normed(nn.BatchNorm1d(4))
    surgery.freeze(model, norm="train")
    model.train()(torch.randn(5, 4))
    assert model.norm.num_batches_tracked == 1
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_undo_gives_every_layer_its_mode_and_its_own_train() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    modes = [module.training for module in model.modules()]
    outcome = surgery.freeze(model)
    outcome.undo()
    assert [module.training for module in model.modules()] == modes
    assert not any("train" in vars(module) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_of_a_timm_model_that_its_own_freeze_misses() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("levit_128s")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) >= 48
    surgery.freeze(model)
    model.train()
    assert not any(norm.training for norm in norms)


def test_stages_are_counted_by_the_family() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    surgery.freeze(model, stages=2, registry=Registry.of(FAMILY))
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}
    model.train()
    assert not model.layer2[0].bn1.training
    assert model.layer3[0].bn1.training


@pytest.mark.parametrize("stages", [-1, 9, True, "2"])
def test_a_wrong_number_of_stages_says_how_many_there_are(stages: object) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    with pytest.raises(ArgumentError) as raised:
        surgery.freeze(model, stages=stages, registry=Registry.of(FAMILY))
    assert raised.value.expected == "0 to 4"


def test_stages_of_an_unknown_model_are_refused_with_the_remedy() -> None:
    with pytest.raises(ArgumentError, match="no plugin knows the stages"):
        surgery.freeze(nn.Linear(2, 2), stages=1, registry=Registry.of())


def test_patterns_may_be_regular_expressions_and_callables() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    surgery.freeze(model, [re.compile("[ab]"), lambda address: address == "c.bias"])
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["c.weight"]


def test_an_unknown_way_with_norms_is_refused() -> None:
    with pytest.raises(ArgumentError) as raised:
        surgery.freeze(nn.BatchNorm1d(2), norm="frozen")
    assert raised.value.expected == "'eval' or 'train'"


def test_a_frozen_layer_that_is_put_into_a_model_stays_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 2)).train()
    new = nn.Sequential(nn.BatchNorm1d(4))
    surgery.freeze(new, registry=Registry.of())
    surgery.replace(model, {"1": new}, example=torch.zeros(2, 4), registry=Registry.of())
    assert (new.training, new[0].training) == (True, False)
    before = new[0].running_mean.clone()
    model.train()(torch.randn(3, 4))
    assert torch.equal(new[0].running_mean, before)
