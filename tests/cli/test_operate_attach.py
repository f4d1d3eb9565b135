"""``surgery operate --attach`` puts a head on a model that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import surgery as door
from surgery.operations.attached import Headed
from surgery.recipes import Step, read_recipe

TRUNK = """
from torch import nn


def images():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(self.one(x).transpose(1, 2)).transpose(1, 2)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, words):
        return {"first": self.mix(words).relu(), "all": self.norm(self.mix(words) + words)}
"""


@pytest.fixture(autouse=True)
def _trunks(surgery, tmp_path):
    Path(tmp_path, "trunks.py").write_text(TRUNK)


def test_a_trunk_gets_a_head_and_is_restored_from_the_file(surgery, shipped):
    result = surgery(
        *("operate", "trunks:images", "--attach", "--classes", "cat,dog", "--hidden", "5"),
        *("--example", "2,3,9,9", "-o", "out.safetensors", "--save-recipe", "r.yaml"),
    )
    assert result.exit_code == 0, result.stderr
    assert "Headed" in result.stdout
    (step,) = read_recipe("r.yaml").steps
    assert step == Step("replace_head", {"classes": ["cat", "dog"], "hidden": [5], "attach": True})
    made = door.restore("trunks:images", "out.safetensors", registry=shipped).model
    assert isinstance(made, Headed)
    assert made.classes == ["cat", "dog"]
    assert made(torch.zeros(1, 3, 9, 9)).shape == (1, 2)
    target = ("--target", "trunks:images", "--example", "2,3,9,9")
    found = surgery("heads", "out.safetensors", *target)
    assert found.exit_code == 0, found.stderr
    assert "head" in found.stdout
    applied = surgery("apply", "r.yaml", "-o", "again.safetensors")
    assert applied.exit_code == 0, applied.stderr
    one, two = (Path(name).read_bytes() for name in ("out.safetensors", "again.safetensors"))
    assert one == two


def test_an_output_and_its_pooling_are_named(surgery):
    result = surgery(
        *("operate", "trunks:Words", "--attach-to", "output['first']", "--pool", "last"),
        *(
            "--num-classes",
            3,
            "--example",
            "2,4,8",
            "-o",
            "o.safetensors",
            "--save-recipe",
            "r.yaml",
        ),
    )
    assert result.exit_code == 0, result.stderr
    (step,) = read_recipe("r.yaml").steps
    assert step.arguments == {"num_classes": 3, "attach": "output['first']", "pool": "last"}


def test_without_it_the_next_step_is_said(surgery):
    result = surgery(
        "operate", "trunks:Words", "--attach", "--num-classes", 3, "--example", "2,4,8", "--dry-run"
    )
    assert result.exit_code == 2
    assert result.stderr.endswith("next: --attach-to 'output['\"'\"'first'\"'\"']'\n")
    wrong = surgery("operate", "trunks:images", "--attach", "-o", "x.safetensors")
    assert wrong.exit_code == 2
    assert "--num-classes" in wrong.stderr


def test_the_axis_of_the_channels_is_named_where_it_does_not_show(surgery):
    asked = ("operate", "trunks:Square", "--pool", "mean", "--num-classes", 3)
    asked += ("--example", "2,4,8")
    result = surgery(*asked, "--attach", "--dry-run")
    assert result.exit_code == 2
    assert result.stderr.endswith("next: --attach-to output --channels 2\n")
    told = surgery(
        *(*asked, "--attach-to", "output", "--channels", 2, "-o", "o.safetensors"),
        *("--save-recipe", "r.yaml"),
    )
    assert told.exit_code == 0, told.stderr
    (step,) = read_recipe("r.yaml").steps
    assert step.arguments["channels"] == 2
