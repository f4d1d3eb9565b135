"""What a file cannot hold is said before anything is written, and what it leaves out is noted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import surgery
from surgery.errors import (
    ArgumentError,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
    WeightsError,
    WrappedModelError,
)
from surgery.operations.recorded import KEY
from surgery.weights import read
from tests.operations.cases import Branches
from tests.operations.restored import assert_answers, assert_same, restored
from tests.operations.state import differences, state_of

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def _sparse() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.eye(2).to_sparse())
    return model


REFUSED: dict[str, tuple[Any, type[SurgeryError], str]] = {
    "meta": (lambda: nn.Linear(2, 2, device="meta"), PlanError, "on meta"),
    "lazy": (lambda: nn.LazyLinear(2), UnsupportedModelError, "model|parameters"),
    "no model": (lambda: {"w": torch.ones(1)}, UnsupportedModelError, "model|parameters"),
    "extra state": (lambda: nn.Sequential(Extra(2, 2)), PlanError, "neither a parameter"),
    "sparse": (_sparse, PlanError, "sparse"),
    "nothing": (lambda: nn.Sequential(nn.ReLU()), PlanError, "nothing to save"),
    "wrapped": (lambda: nn.DataParallel(nn.Linear(2, 2)), WrappedModelError, "DataParallel"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_a_file_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    make, error, match = REFUSED[name]
    with pytest.raises(error, match=match) as caught:
        surgery.save(make(), tmp_path / "a")
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_refused(tmp_path: Path) -> None:
    try:
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)))
    except RuntimeError as error:
        pytest.skip(f"no quantised kernels here: {error}")
    with pytest.raises(PlanError, match="neither a parameter nor a buffer"):
        surgery.save(model, tmp_path / "a")


def test_saving_touches_nothing(tmp_path: Path) -> None:
    model = Branches()
    model(EXAMPLE)[0].sum().backward()
    before = state_of(model)
    surgery.save(model, tmp_path / "a")
    assert not differences(before, state_of(model))


def test_a_file_that_is_there_is_kept_unless_asked(tmp_path: Path) -> None:
    path = surgery.save(nn.Linear(2, 2), tmp_path / "a").path
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="file already"):
        surgery.save(nn.Linear(2, 2), path)
    with pytest.raises(ArgumentError):
        surgery.save(nn.Linear(2, 2), 3)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    surgery.save(nn.Linear(3, 3), path, overwrite=True)
    assert path.read_bytes() != before


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    model = Branches()
    surgery.replace_head(model, 3, example=EXAMPLE)
    path = surgery.save(model, tmp_path / "model.safetensors").path
    other = Branches()
    surgery.replace_head(other, 3, example=EXAMPLE)
    other.load_state_dict(load_file(path))
    assert_same(model, other)
    metadata = read(path).metadata
    assert metadata["format"] == "pt"
    record = json.loads(metadata[KEY])
    assert record["version"] == 1
    assert record["operations"][0]["title"].startswith("replace_head('fc': 3")


def test_the_same_model_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = """
import sys, torch, surgery
from tests.operations.cases import Branches
torch.manual_seed(0)
model = Branches()
surgery.replace_head(model, classes=["x", "y"], example=torch.zeros(3, 8))
model.kinds = {"a", "b", "c"}
surgery.save(model, sys.argv[1])
"""
    found = []
    for number in range(2):
        path = tmp_path / str(number)
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    model = Branches()
    model.register_buffer("table", torch.ones(3), persistent=False)
    model.fc.register_forward_hook(lambda *_: None)
    notes = " ".join(surgery.save(model, tmp_path / "a").notes)
    assert "hooks are not saved: fc" in notes
    assert "table" in notes


def test_a_compiled_model_is_saved_as_what_it_wraps(tmp_path: Path) -> None:
    model = Branches()
    saved = surgery.save(torch.compile(model), tmp_path / "a")  # type: ignore[arg-type]
    assert set(load_file(saved.path)) == set(model.state_dict())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight norm", "spectral norm", "old weight norm", "pruned"],
)
def test_weights_that_are_computed_come_back_where_the_target_computes_them(
    tmp_path: Path, norm: Any
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), norm(nn.Linear(8, 5)))

    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    again = restored(model, make, tmp_path).model
    assert_same(model, again)
    assert_answers(model, again, EXAMPLE)
    with pytest.raises(PlanError, match=r"computed|keeps no code"):
        surgery.restore(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)), tmp_path)
