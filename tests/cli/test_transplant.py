"""``surgery transplant`` takes layers of a checkpoint or of a model."""

from __future__ import annotations

import torch

import surgery as door
from tests.cli.writing import SMALL, parts, weights
from tests.recipes.models import small


def test_layers_of_a_checkpoint_arrive_and_are_frozen(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    words = ("transplant", "w.pth", SMALL, "--map", "0=0", "--map", "1.*=1.*", "--freeze")
    result = surgery(*words, "-o", "out.safetensors", "--save-recipe", "r.yaml")
    assert result.exit_code == 0, result.stderr
    model = door.restore(small, "out.safetensors").model
    expected = torch.load("w.pth", weights_only=True)
    assert torch.equal(model[0].weight, expected["0.weight"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["5.weight", "5.bias"]
    again = surgery("apply", "r.yaml", "-o", "again.safetensors")
    assert again.exit_code == 0, again.stderr
    one, two = (tmp_path / f"{name}.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_layers_of_a_model_arrive_with_its_weights(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    words = ("transplant", SMALL, SMALL, "--donor-weights", "w.pth", "--map", "0=0")
    result = surgery(*words, "-o", "out.safetensors")
    assert result.exit_code == 0, result.stderr
    expected = torch.load("w.pth", weights_only=True)
    assert torch.equal(door.restore(small, "out.safetensors").model[0].weight, expected["0.weight"])


def test_what_fits_nowhere_is_refused(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    for words in (("--map", "9=0"), ("--map", "0"), ("--map", "0=0", "--map", "0=1")):
        result = surgery("transplant", "w.pth", SMALL, *words, "-o", "out.safetensors")
        assert result.exit_code == 2
        assert parts(tmp_path) == ["w.pth"]
    result = surgery("transplant", "none.pth", SMALL, "-o", "out.safetensors")
    assert result.exit_code == 2
    assert "no such file" in result.stderr
