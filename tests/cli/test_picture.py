from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import Result
from PIL import Image

Run = Callable[..., Result]


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))\n"
    )
    return "tiny:make"


SIZE = ("--example", "1,3,8,8")


def test_it_draws_a_graph(surgery: Run, model: str, tmp_path: Path):
    found = surgery("picture", model, "--graph", "-o", "graph.svg", *SIZE, "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.output)
    assert (said["schema"], said["kind"]) == ("surgery/picture/1", "graph")
    assert (said["path"], said["blocks"]) == ("graph.svg", 6)
    assert ElementTree.parse(tmp_path / "graph.svg").getroot().tag.endswith("svg")


def test_it_draws_kernels(surgery: Run, model: str, tmp_path: Path):
    found = surgery("picture", model, "--layer", "0", "-o", "filters.png")
    assert found.exit_code == 0, found.output
    assert "8 kernels of 3 x 3 over 3 channels" in found.output
    with Image.open(tmp_path / "filters.png") as image:
        assert image.format == "PNG"


def test_zero_is_a_number_like_any_other(surgery: Run, model: str):
    words = ("picture", model, "--json", *SIZE)
    found = surgery(*words, "--graph", "-o", "graph.svg", "--depth", "0")
    assert json.loads(found.output)["blocks"] == 3, "the input, the model, the output"
    found = surgery(*words, "--layer", "0", "-o", "filters.png", "--channel", "0")
    assert json.loads(found.output)["title"].endswith("over 3 channels, channel 0")


def test_it_draws_maps_before_and_after(surgery: Run, model: str, tmp_path: Path):
    Image.new("RGB", (10, 9), "red").save(tmp_path / "red.jpg")
    weights = {"0.weight": torch.ones(8, 3, 3, 3), "0.bias": torch.zeros(8)}
    weights |= {"3.weight": torch.ones(4, 288), "3.bias": torch.zeros(4)}
    torch.save(weights, tmp_path / "ones.pt")
    torch.save({name: 2 * value for name, value in weights.items()}, tmp_path / "twos.pt")
    words = ("picture", model, "--layer", "0", "--weights", "ones.pt", "--image", "red.jpg")
    found = surgery(*words, "--after", "twos.pt", "-o", "maps.png", *SIZE, "--json")
    assert found.exit_code == 0, found.output
    # Nine red pixels, nearly 1 each, once and twice.
    assert json.loads(found.output)["difference"] == pytest.approx(9 * 254 / 255, abs=0.1)
    assert (tmp_path / "maps.png").is_file()


def test_it_replaces_nothing_unasked(surgery: Run, model: str, tmp_path: Path):
    (tmp_path / "filters.png").write_text("old")
    words = ("picture", model, "--layer", "0", "-o", "filters.png")
    found = surgery(*words)
    assert found.exit_code == 2
    assert "there is a file already" in found.output
    assert "next: --overwrite, or another name" in found.output
    assert (tmp_path / "filters.png").read_text() == "old"
    assert surgery(*words, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either --graph or --layer"),
        (("--graph", "--layer", "0"), "either --graph or --layer"),
        (("--graph", "--limit", "3"), "--limit says nothing about a graph"),
        (("--layer", "0", "--depth", "2"), "--depth says nothing about a layer"),
        (("--graph", "--depth", "deep"), "neither a number of levels"),
        (("--layer", "0", "--mean", "grey"), "no list such as"),
    ],
    ids=["nothing", "both", "limit", "depth", "levels", "mean"],
)
def test_what_makes_no_sense_is_refused(
    surgery: Run, model: str, words: tuple[str, ...], said: str
):
    found = surgery("picture", model, *words, "-o", "x.png")
    assert found.exit_code == 2
    assert said in found.output
    assert not Path("x.png").exists()
