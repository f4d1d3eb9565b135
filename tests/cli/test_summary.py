"""``surgery summary``: torchinfo's table for people, its numbers for programs."""

from __future__ import annotations

import json
from pathlib import Path

import torchvision

import surgery as library


def test_the_table_is_torchinfos(surgery):
    done = surgery("summary", "torchvision:alexnet", "--depth", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    table = library.summary(torchvision.models.alexnet(), depth=1)
    assert done.output == f"{table}\n"
    assert "Total params: 61,100,840" in done.output


def test_programs_get_every_layer(surgery):
    found = json.loads(surgery("summary", "alexnet", "--json").stdout)
    assert found["schema"] == "surgery/summary/1"
    assert (found["total"], found["trainable"]) == (61100840, 61100840)
    first = found["layers"][0]
    assert (first["type"], first["depth"], first["output_size"]) == ("AlexNet", 0, [2, 1000])
    assert sum(each["parameters"] for each in found["layers"] if each["depth"] == 1) == 61100840


def test_names_of_a_model_steer_no_terminal(surgery, tmp_path: Path):
    (tmp_path / "evil.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 2)\n"
        "Net.__name__ = 'Net\\x1b[2J'\n",
        "utf-8",
    )
    done = surgery("summary", "evil:Net", "--example", "1,3")
    assert done.exit_code == 0
    assert "\x1b" not in done.output
    assert "Net\\x1b[2J" in done.output
