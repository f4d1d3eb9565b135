"""``surgery align`` and ``surgery transplant --match graph``, between two ways to write a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import surgery as door
from tests.operations.aligned import Blocks, OtherBlocks

ONE, OTHER = (f"tests.operations.aligned:{kind.__name__}" for kind in (Blocks, OtherBlocks))


def test_what_corresponds_is_shown(surgery):
    done = surgery("align", ONE, OTHER, "--example", "2,3,5,5")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "convs.1.weight" in done.output
    found = json.loads(surgery("align", ONE, OTHER, "--example", "2,3,5,5", "--json").stdout)
    assert found["schema"] == "surgery/correspondence/1"
    assert found["coverage"] == 1
    assert {"donor": "stem.weight", "recipient": "convs.1.weight"}.items() <= next(
        pair.items() for pair in found["pairs"] if pair["donor"] == "stem.weight"
    )


def test_strangers_are_a_mistake(surgery):
    done = surgery("align", ONE, "torch.nn:Identity", "--example", "2,3,5,5")
    assert done.exit_code == 2
    assert "nothing in common" in done.stderr


def test_weights_go_over_by_graph(surgery):
    torch.save(Blocks().state_dict(), "one.pth")
    words = ("transplant", ONE, OTHER, "--donor-weights", "one.pth", "--match", "graph")
    done = surgery(*words, "--example", "2,3,5,5", "-o", "out.safetensors")
    assert done.exit_code == 0, done.stderr
    expected = torch.load("one.pth", weights_only=True)
    model = door.restore(OtherBlocks, "out.safetensors").model
    assert torch.equal(model.get_parameter("classify.weight"), expected["head.weight"])


def test_settings_are_taken_over_where_asked(surgery):
    words = ("transplant", ONE, OTHER, "--match", "graph", "--example", "2,3,5,5")
    done = surgery(*words, "--set-differences", "-o", "out.safetensors", "--save-recipe", "r.yaml")
    assert done.exit_code == 0, done.stderr
    assert "differences: set" in Path("r.yaml").read_text("utf-8")
