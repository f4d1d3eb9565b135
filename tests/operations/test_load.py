"""What load_weights promises beside the laws: policies, ties, meta, warnings, refusals."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from surgery_plugins import detection, resnet, vgg
from torch import nn
from torchvision import models

import surgery
from surgery.errors import (
    ArgumentError,
    CoverageError,
    PartialLoadWarning,
    PlanError,
    WrappedModelError,
)
from surgery.families.registry import Registry
from surgery.operations.names import remembered
from surgery.operations.plan import Outcome
from tests.operations.state import differences
from tests.operations.state import state_of as everything

NOBODY = Registry.of()


def state_of(*values: Any) -> dict[str, object]:
    """Without the process: other models are made along the way, and draw."""
    return everything(*values, process=False)


class Net(nn.Module):
    """A trunk with statistics, a head, and a buffer that no file holds."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.stem(x)).mean((2, 3))) * self.scale


class Tied(nn.Module):
    """A decoder that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.decode = nn.Linear(4, 5)
        self.decode.weight = self.embed.weight


def load(model: nn.Module, source: object, **options: Any) -> Outcome:
    return surgery.load_weights(model, source, **{"registry": NOBODY, **options})


def quietly(model: nn.Module, source: object, **options: Any) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartialLoadWarning)
        return load(model, source, **options)


def equal(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def other(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of other values."""
    return {key: value * 2 + 1 for key, value in model.state_dict().items()}


def test_the_head_of_another_number_of_classes_is_skipped_and_said():
    model, source = Net(5), other(Net(3))
    fc = model.fc.weight.clone()
    with pytest.warns(PartialLoadWarning, match=r"2 tensors \(fc\.weight, fc\.bias\) skipped") as w:
        outcome = load(model, source)
    assert len(w) == 1
    assert w[0].filename.endswith("test_load.py") or "test_load" in w[0].filename
    assert [item.key for item in outcome.plan.matching.mismatched] == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, fc)
    assert equal(model, {key: value for key, value in source.items() if "fc" not in key})
    assert "middle" not in str(w[0].message)


def test_nothing_is_touched_where_the_warning_is_an_error():
    model = Net(5)
    before = state_of(model)
    # Warnings are errors in these tests.
    with pytest.raises(PartialLoadWarning):
        load(model, other(Net(3)))
    assert not differences(before, state_of(model))


def test_everything_about_the_tensors_stays_but_the_values():
    model = Net().half()
    model.stem.weight.requires_grad_(False)
    source = other(Net())
    tensors = dict(model.state_dict(keep_vars=True))
    forms = {key: (t.dtype, t.device, t.requires_grad) for key, t in tensors.items()}
    state = OrderedDict(source)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    nothing = nn.Module()
    before = state_of(nothing, state)
    outcome = load(model, state)
    assert not differences(before, state_of(nothing, state))
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is tensor for key, tensor in tensors.items())
    assert forms == {key: (t.dtype, t.device, t.requires_grad) for key, t in after.items()}
    assert equal(model, {key: v.to(tensors[key].dtype) for key, v in source.items()})
    assert any("rounds" in note for note in outcome.plan.notes)
    assert {item.key for item in outcome.plan.matching.converted} == {
        key for key in source if "num_batches" not in key
    }


def test_values_too_large_for_the_dtype_are_refused():
    model = nn.Linear(2, 2).half()
    before = state_of(model)
    with pytest.raises(PlanError, match="too large"):
        load(model, {"weight": torch.full((2, 2), 1e6), "bias": torch.ones(2)})
    assert not differences(before, state_of(model))


def test_ties_stay_and_only_equal_values_may_go_to_one_tensor():
    model, source = Tied(), other(Tied())
    load(model, source)
    assert model.decode.weight is model.embed.weight
    assert equal(model, source)
    source["decode.weight"] = source["decode.weight"] + 1
    before = state_of(model)
    with pytest.raises(PlanError, match="two different tensors"):
        load(model, source)
    assert not differences(before, state_of(model))


@pytest.mark.parametrize("assign", [False, True])
def test_a_tied_source_does_not_tie_the_model(assign: bool, tmp_path: Path):
    source = Tied()
    torch.save(source.state_dict(), tmp_path / "tied.pth")
    model = Tied()
    model.decode.weight = nn.Parameter(torch.zeros(5, 4))
    load(model, tmp_path / "tied.pth", assign=assign)
    assert equal(model, source.state_dict())
    with torch.no_grad():
        model.decode.weight.zero_()
    assert torch.equal(model.embed.weight, source.embed.weight)


def test_assign_puts_in_the_sources_own_tensors():
    model, source = Tied(), {k: v.double() for k, v in other(Tied()).items()}
    source["decode.weight"] = source["embed.weight"]
    model.embed.weight.requires_grad_(False)
    before = state_of(model)
    outcome = load(model, source, assign=True)
    assert model.embed.weight.data_ptr() == source["embed.weight"].data_ptr()
    assert model.decode.weight is model.embed.weight
    assert model.decode.bias.dtype == torch.float64
    assert isinstance(model.decode.bias, nn.Parameter)
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert outcome.undo() is model
    assert not differences(before, state_of(model))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_model_on_meta_gets_memory(assign: bool, mmap: bool, tmp_path: Path):
    source = Net()
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    with torch.device("meta"):
        model = Net()
    model.scale = torch.ones(1)
    before = state_of(model)
    outcome = load(model, tmp_path / "net.safetensors", assign=assign, mmap=mmap)
    assert equal(model, source.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), source.eval()(x))
    model.train()
    outcome.undo()
    assert not differences(before, state_of(model))


def test_nothing_is_left_on_meta():
    with torch.device("meta"):
        model = Net()
    model.scale = torch.ones(1)
    state = Net().state_dict()
    del state["fc.bias"]
    with pytest.raises(PlanError, match="on meta") as caught:
        quietly(model, state)
    assert caught.value.where == "fc.bias"
    with torch.device("meta"):
        whole = Net()
    with pytest.raises(PlanError, match="on meta") as caught:
        quietly(whole, Net().state_dict())
    assert caught.value.where == "scale"


def test_a_callable_policy_makes_the_values_or_skips():
    model, source = Net(5), other(Net(3))

    def rows(address: str, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor | None:
        if address == "fc.bias":
            return None
        ours[:3] = theirs
        return ours

    with pytest.warns(PartialLoadWarning, match=r"1 tensor \(fc\.bias\)"):
        outcome = load(model, source, on_mismatch={"fc": rows})
    assert torch.equal(model.fc.weight[:3], source["fc.weight"])
    assert [item.policy for item in outcome.plan.matching.mismatched] == [rows, "skip"]


def test_policies_by_pattern():
    model, source = Net(5, channels=1), other(Net(3))
    before = state_of(model)
    with pytest.raises(PlanError, match=r"2 tensors fit by name and not by shape"):
        load(model, source, on_mismatch={"fc": "error", "*": "skip"})
    assert not differences(before, state_of(model))
    with pytest.raises(PlanError, match="no names"):
        load(model, source, on_mismatch={"norm": "skip", "fc.bias": "adapt"}, drop="fc.weight")
    with pytest.raises(ArgumentError, match="nothing says how"):
        load(model, {**source, "norm.weight": torch.ones(7)}, on_mismatch={"norm": "adapt"})


def test_too_little_is_refused():
    model = Net()
    before = state_of(model)
    with pytest.raises(CoverageError):
        load(model, {"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(CoverageError):
        load(model, other(Net()), min_coverage=1, rename={"fc.bias": "x"})
    assert not differences(before, state_of(model))


def test_a_dry_run_touches_nothing_and_warns_of_nothing():
    model = Net(5)
    before = state_of(model)
    outcome = load(model, other(Net(3)), dry_run=True)
    assert not differences(before, state_of(model))
    assert len(outcome.plan.steps) == 7
    assert outcome.operated is None
    assert "fc.weight" in str(surgery.report(outcome))


def test_layers_in_the_middle_that_do_not_fit_are_said_first():
    registry = Registry.of(resnet.FAMILY, vgg.FAMILY)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in models.resnet18().state_dict().items()}
    small = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    model = models.resnet50()
    with pytest.warns(PartialLoadWarning, match="the middle of the model does not fit: 23 tensors"):
        load(model, small, registry=registry)
    with pytest.warns(PartialLoadWarning, match=r"\): 24 tensors"):
        load(model, small, registry=registry, on_mismatch={"layer*": "skip"})


def test_a_wrapped_source_and_a_compiled_model():
    model, source = Net(), Net()
    compiled = torch.compile(model)
    load(compiled, nn.DataParallel(source))
    assert equal(model, source.state_dict())
    load(model, {f"module._orig_mod.{k}": v for k, v in other(source).items()})
    assert equal(model, other(source))
    with pytest.raises(WrappedModelError):
        load(nn.DataParallel(model), source)


def test_a_quantised_model_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    with pytest.raises(PlanError, match="quantised"):
        load(packed, model)


class WithExtra(nn.Module):
    """Keeps something besides tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def get_extra_state(self) -> object:
        return {"steps": 3}

    def set_extra_state(self, state: object) -> None:
        raise AssertionError("not to be called")


def test_extra_state_is_listed():
    outcome = load(WithExtra(), WithExtra().state_dict())
    assert any("extra state" in note and "_extra_state" in note for note in outcome.plan.notes)


class Renames(nn.Module):
    """A layer that had another name in its first version."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 2)

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, facts: dict[str, Any], *rest: Any
    ) -> None:
        if facts.get("version") is None or facts["version"] < 2:
            for name in ("weight", "bias"):
                if f"{prefix}old.{name}" in state:
                    state[f"{prefix}new.{name}"] = state.pop(f"{prefix}old.{name}")
        super()._load_from_state_dict(state, prefix, facts, *rest)


class Turns(Renames):
    """A layer that kept its weight the other way round."""

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, facts: dict[str, Any], *rest: Any
    ) -> None:
        state[f"{prefix}new.weight"] = state[f"{prefix}new.weight"].t()
        super()._load_from_state_dict(state, prefix, facts, *rest)


def test_what_a_layers_own_loading_code_renames_is_followed():
    model = nn.Sequential(nn.Linear(2, 2), Renames())
    state = other(model)
    old = {key.replace("new", "old"): value for key, value in state.items()}
    before = dict(vars(model[1]))
    outcome = load(model, {f"module.{key}": value for key, value in old.items()})
    assert equal(model, state)
    assert any("own loading code" in note for note in outcome.plan.notes)
    assert before == vars(model[1])


def test_what_a_layers_own_loading_code_computes_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), Turns())
    before = state_of(model)
    with pytest.raises(PlanError, match="converts this tensor"):
        load(model, other(model))
    assert not differences(before, state_of(model))


def test_a_detector_of_the_first_version():
    model = models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = {key: value + 1 for key, value in model.state_dict().items()}
    old = {
        key.replace(".0.0.", ".0.")
        .replace(".1.0.", ".1.")
        .replace(".2.0.", ".2.")
        .replace(".3.0.", ".3.")
        if "fpn" in key
        else key: value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    load(model, old, registry=Registry.of(detection.RCNN))
    assert equal(model, state)


def test_a_part_of_the_models_own_tensors_in_other_places():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = (copy.deepcopy(layer.state_dict()) for layer in model)
    own = model.state_dict()
    swapped = {key.replace("0", "x").replace("1", "0").replace("x", "1"): own[key] for key in own}
    load(model, swapped)
    assert equal(model[0], second)
    assert equal(model[1], first)


def test_the_names_of_an_entrys_classes_come_with_its_head():
    class Entry:
        meta = {"categories": ["cat", "dog", "eel"]}  # noqa: RUF012

        def get_state_dict(self) -> dict[str, torch.Tensor]:
            return other(model)

    model = models.resnet18(num_classes=3)
    outcome = load(model, Entry(), registry=Registry.of(resnet.FAMILY))
    assert remembered(model) == ("cat", "dog", "eel")
    outcome.undo()
    assert remembered(model) is None
