"""``surgery load`` writes what fits, and says what does not."""

from __future__ import annotations

import json

import pytest
import torch

import surgery as door
from tests.cli.writing import SMALL, parts, weights
from tests.recipes.models import small


@pytest.mark.filterwarnings("default")
def test_what_fits_is_loaded_and_the_rest_is_said(surgery, tmp_path):
    weights(tmp_path / "w.pth", num_classes=9)
    result = surgery("load", SMALL, "w.pth", "-o", "out.safetensors")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("warning: load_weights(")
    assert "5.weight" in result.stdout
    model = door.restore(small, "out.safetensors").model
    expected = torch.load("w.pth", weights_only=True)
    assert torch.equal(model[0].weight, expected["0.weight"])
    assert model[5].out_features == 4


def test_keys_get_other_names_one_by_one_and_by_their_beginning(surgery, tmp_path):
    state = torch.load(weights(tmp_path / "w.pth"), weights_only=True)
    named = {key.replace("0.", "stem.", 1) if key[0] == "0" else key: v for key, v in state.items()}
    torch.save(named, tmp_path / "named.pth")
    for rename in (
        ("--rename", "stem.*=0.*"),
        ("--rename", "stem.weight=0.weight", "--rename", "stem.bias=0.bias"),
        ("--rename", "stem.*=0.*", "--rename", "5.bias=5.bias"),
    ):
        words = ("load", SMALL, "named.pth", *rename, "--on-mismatch", "error", "--min-coverage", 1)
        result = surgery(*words, "-o", "out.safetensors", "--overwrite", "--save-recipe", "r.yaml")
        assert result.exit_code == 0, result.stderr
        assert torch.equal(
            door.restore(small, "out.safetensors").model[0].weight, state["0.weight"]
        )
        again = surgery("apply", "r.yaml", "-o", "again.safetensors", "--overwrite")
        assert again.exit_code == 0, again.stderr
        one, two = (tmp_path / f"{name}.safetensors" for name in ("out", "again"))
        assert one.read_bytes() == two.read_bytes()


def test_patterns_are_left_out(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    result = surgery("load", SMALL, "w.pth", "--drop", "5.*", "--dry-run", "--json")
    said = json.loads(result.stdout)
    assert said["output"] is None
    assert "dropped" in result.stdout
    assert parts(tmp_path) == ["w.pth"]


def test_nonsense_is_refused(surgery, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth")
    result = surgery("load", SMALL, "w.pth", "-o", "out.safetensors")
    assert result.exit_code == 2
    assert parts(tmp_path) == ["w.pth"]
    half = surgery("load", SMALL, "w.pth", "--rename", "a.*=b", "-o", "out.safetensors")
    assert half.exit_code == 2
    assert "both ends" in half.stderr
