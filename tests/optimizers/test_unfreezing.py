"""A plan of unfreezing: data that survives, and applying it twice changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery_plugins.resnet import FAMILY
from torch import nn

import surgery
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from tests.optimizers.training import NONE, batches, network, train

EXAMPLE = torch.zeros(2, 8)
KNOWN = Registry.of(FAMILY)
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


def flags(model: nn.Module) -> list[tuple[str, bool]]:
    return [(name, each.requires_grad) for name, each in model.named_parameters()]


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.train().modules()]


def resnet() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.resnet18(num_classes=3)


def test_stages_begin_from_the_head_down():
    plan = surgery.unfreezing(resnet(), every=2, registry=KNOWN)
    assert [phase.name for phase in plan.phases] == list(STAGES)
    assert plan.at(0) == ("head",)
    assert plan.at(3) == ("layer4", "head")
    assert plan.at(100) == STAGES


def test_a_model_is_where_the_plan_says():
    model = resnet()
    plan = surgery.unfreezing(model, registry=KNOWN)
    for epoch in (0, 2, 5):
        plan.apply(model, epoch, registry=KNOWN)
        trains = plan.at(epoch)
        for name, each in model.named_parameters():
            part = name.split(".")[0]
            stage = {"conv1": "stem", "bn1": "stem", "fc": "head"}.get(part, part)
            assert each.requires_grad is (stage in trains)
        # What is frozen holds its statistics too.
        assert model.train().bn1.training is ("stem" in trains)
        assert model.layer4[0].bn1.training is ("layer4" in trains)


@settings(max_examples=25)
@given(epochs=st.lists(st.integers(0, 5), min_size=1, max_size=4), every=st.integers(0, 2))
def test_where_a_model_is_depends_on_the_epoch_alone(epochs: list[int], every: int):
    model, other = network(), network()
    plan = surgery.unfreezing(model, every, example=EXAMPLE, registry=NONE)
    for epoch in epochs:
        plan.apply(model, epoch, registry=NONE)
    plan.apply(other, epochs[-1], registry=NONE)
    assert flags(model) == flags(other)
    assert modes(model) == modes(other)
    assert plan.apply(model, epochs[-1], registry=NONE) == ()


def test_undoing_goes_back():
    model = network()
    before = flags(model), modes(model)
    plan = surgery.unfreezing(model, example=EXAMPLE, registry=NONE)
    for outcome in reversed(plan.apply(model, 0, registry=NONE)):
        outcome.undo()
    assert (flags(model), modes(model)) == before


def test_a_plan_survives_json_and_a_plain_checkpoint(tmp_path: Path):
    model = network()
    plan = surgery.unfreezing(model, every=2, example=EXAMPLE, registry=NONE)
    groups = surgery.parameter_groups(
        model, lr=0.01, layer_decay=0.5, frozen=True, example=EXAMPLE, registry=NONE
    )
    optimizer = torch.optim.AdamW(groups)
    plan.apply(model, 2, registry=NONE)
    train(model, optimizer, batches(2))
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "unfreezing": plan.as_dict(),
        "epoch": 2,
    }
    torch.save(checkpoint, tmp_path / "last.pt")
    read = torch.load(tmp_path / "last.pt", weights_only=True)
    again = network(seed=7)
    again.load_state_dict(read["model"])
    resumed = surgery.Unfreezing.from_dict(read["unfreezing"])
    assert resumed == plan == surgery.Unfreezing.from_dict(json.loads(json.dumps(plan.as_dict())))
    resumed.apply(again, read["epoch"], registry=NONE)
    other = torch.optim.AdamW(
        surgery.parameter_groups(
            again, lr=0.01, layer_decay=0.5, frozen=True, example=EXAMPLE, registry=NONE
        )
    )
    other.load_state_dict(read["optimizer"])
    assert flags(again) == flags(model)
    for epoch in (3, 4):
        for each, its in ((model, optimizer), (again, other)):
            plan.apply(each, epoch, registry=NONE)
            train(each, its, batches(2, seed=epoch))
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_saved_model_comes_back_where_it_was(tmp_path: Path):
    model = network()
    plan = surgery.unfreezing(model, example=EXAMPLE, registry=NONE)
    plan.apply(model, 1, registry=NONE)
    surgery.save(model, tmp_path / "model.safetensors")
    again = surgery.restore(network, tmp_path / "model.safetensors").model
    assert flags(again) == flags(model)
    assert modes(again) == modes(model)
    assert plan.apply(again, 1, registry=NONE) == ()
    assert plan.apply(again, 2, registry=NONE)


def test_a_new_head_keeps_its_place_in_the_plan():
    model = network()
    plan = surgery.unfreezing(model, example=EXAMPLE, registry=NONE)
    surgery.replace_head(model, 3, heads="4", example=EXAMPLE, registry=NONE)
    plan.apply(model, 0, registry=NONE)
    assert [name for name, flag in flags(model) if flag] == ["4.weight", "4.bias"]


def test_what_is_excepted_stays_as_it_is():
    model = network()
    model[0].weight.requires_grad_(False)
    plan = surgery.unfreezing(
        model, every=2, except_=["0", "*.bias"], example=EXAMPLE, registry=NONE
    )
    assert [(phase.epoch, phase.parts) for phase in plan.phases] == [
        (4, ("1.weight",)),
        (2, ("3.weight",)),
        (0, ("4.weight",)),
    ]
    alone = {"0.weight": False, "0.bias": True, "1.bias": True, "3.bias": True, "4.bias": True}
    for epoch, trains in ((0, {"4"}), (2, {"3", "4"}), (4, {"1", "3", "4"})):
        plan.apply(model, epoch, registry=NONE)
        expected = alone | {f"{n}.weight": str(n) in trains for n in (1, 3, 4)}
        assert {name: p.requires_grad for name, p in model.named_parameters()} == expected
    assert surgery.Unfreezing.from_dict(plan.as_dict()) == plan
    with pytest.raises(ArgumentError, match="has such an address"):
        surgery.unfreezing(model, except_="nowhere", example=EXAMPLE, registry=NONE)


def test_adapters_are_unfrozen_and_what_they_adapt_is_not():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["0", "3"], modules_to_save=["4"], r=2)
    model = peft.get_peft_model(network(), config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    plan = surgery.unfreezing(
        model,
        except_=["*.base_layer", "*.original_module", "*.1"],
        example=EXAMPLE,
        registry=NONE,
    )
    last = max(phase.epoch for phase in plan.phases)
    for epoch in range(last + 1):
        plan.apply(model, epoch, registry=NONE)
        now = {name for name, p in model.named_parameters() if p.requires_grad}
        assert now <= trained
        assert (now == trained) is (epoch == last)


def test_wrong_arguments():
    model = network()
    plan = surgery.unfreezing(model, example=EXAMPLE, registry=NONE)
    for wrong in (-1, 1.0, True, "1"):
        with pytest.raises(ArgumentError, match="epochs are counted from 0"):
            plan.at(wrong)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="epochs are counted from 0"):
            plan.apply(model, wrong, registry=NONE)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="epochs are counted from 0"):
            surgery.unfreezing(model, wrong, example=EXAMPLE, registry=NONE)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no such stage") as error:
        surgery.unfreezing(model, epochs={"tail": 1}, example=EXAMPLE, registry=NONE)
    assert error.value.expected == "depth 1, depth 2, depth 3"
    for wrong in (["depth 1"], 5, "depth 1", ("depth 1", 3)):
        with pytest.raises(ArgumentError, match="for stages by name") as error:
            surgery.unfreezing(model, epochs=wrong, example=EXAMPLE, registry=NONE)  # type: ignore[arg-type]
        assert error.value.where == "epochs"
    with pytest.raises(ArgumentError) as error:
        surgery.unfreezing(model, every=-1, example=EXAMPLE, registry=NONE)
    assert "every=5" in str(error.value.fix)
    before = flags(model)
    with pytest.raises(PlanError, match="other addresses"):
        surgery.unfreezing(resnet(), registry=KNOWN).apply(model, 0, registry=NONE)
    assert flags(model) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("phases"),
        lambda data: data.update(version=2),
        lambda data: data["phases"][0].pop("epoch"),
        lambda data: data["phases"][0].update(epoch=-1),
        lambda data: data["phases"][0].update(epoch="1"),
        lambda data: data["phases"][0].update(parts="0"),
        lambda data: data["phases"][0].update(more=1),
        lambda data: data["phases"].append(None),
    ],
    ids=["phases", "version", "epoch", "negative", "text", "parts", "more", "none"],
)
def test_data_that_is_no_plan(change: Any):
    data = surgery.unfreezing(network(), example=EXAMPLE, registry=NONE).as_dict()
    surgery.Unfreezing.from_dict(data)
    change(data)
    with pytest.raises(ArgumentError, match="no plan"):
        surgery.Unfreezing.from_dict(data)
