"""``surgery inspect`` on models and on checkpoints, sound and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import surgery as library
from surgery.weights import read
from surgery.weights.contents import contents, contents_of
from tests.cli.test_main import COUNTED, python


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(x))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(Net().state_dict(), path, {"format": "pt", "made by": "a test"})
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    state = Net().state_dict()
    names = list(state)
    table = {}
    for number, part in enumerate((names[:9], names[9:])):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def test_a_model_is_shown_with_inputs_heads_and_size(surgery):
    done = surgery("inspect", "torchvision:googlenet")
    assert (done.exit_code, done.stderr) == (0, "")
    for said in (
        "torchvision.models.googlenet.GoogLeNet",
        "float32[2, 3, 224, 224]",
        "aux2.fc2",
        "13,004,888",
        "100.0 %",
        "49.7 MiB",
    ):
        assert said in done.output
    found = json.loads(surgery("inspect", "torchvision:googlenet", "--json").stdout)
    assert found["schema"] == "surgery/inspection/1"
    assert (found["family"], found["total"], found["trainable_ratio"]) == ("googlenet", 13004888, 1)
    assert [head["address"] for head in found["heads"]] == ["fc", "aux2.fc2", "aux1.fc2"]


def test_a_model_may_be_built_for_another_number_of_classes(surgery):
    done = surgery("inspect", "resnet18", "--num-classes", 7, "--json")
    assert [head["num_classes"] for head in json.loads(done.stdout)["heads"]] == [7]


def test_what_cannot_be_recorded_is_shown_all_the_same(surgery, tmp_path: Path):
    (tmp_path / "unrunnable.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 2)\n"
        "    def forward(self, x): raise ValueError('no')\n",
        "utf-8",
    )
    done = surgery("inspect", "unrunnable:Net")
    assert done.exit_code == 0
    assert "unrunnable.Net" in done.output
    assert "inputs and heads are not known" in " ".join(done.output.split())
    assert "heads" not in json.loads(surgery("inspect", "unrunnable:Net", "--json").stdout)


def test_a_checkpoint_is_shown_folded(checkpoint: Path, surgery):
    done = surgery("inspect", checkpoint)
    assert (done.exit_code, done.stderr) == (0, "")
    rows = [line.split() for line in done.output.splitlines()]
    assert ["layers.{0..11}.weight", "12", "[4,", "4]", "float32", "768", "B"] in rows
    assert ["fc.bias", "1", "[3]", "float32", "12", "B"] in rows
    assert ["made", "by", "a", "test"] in rows


def test_json_lists_every_tensor_and_folds_to_the_same_sums(checkpoint: Path, surgery):
    found = json.loads(surgery("inspect", checkpoint, "--json").stdout)
    state = Net().state_dict()
    assert found["schema"] == "surgery/contents/1"
    assert {each["name"]: tuple(each["shape"]) for each in found["tensors"]} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert sum(each["times"] for each in found["folded"]) == found["count"] == len(state)
    assert sum(each["bytes"] for each in found["folded"]) == found["bytes"]
    assert sum(each["bytes"] for each in found["dtypes"]) == found["bytes"]


def test_torch_is_not_imported_for_safetensors(checkpoint: Path, sharded: Path):
    for path in checkpoint, sharded, sharded / "model.safetensors.index.json":
        for words in (), ("--json",):
            done = python(COUNTED, "inspect", path, *words)
            assert done.returncode == 0, done.stderr
            assert "float32" in done.stdout


def test_nothing_but_the_header_is_read(checkpoint: Path, surgery):
    shown = surgery("inspect", checkpoint).output
    length = int.from_bytes(checkpoint.read_bytes()[:8], "little")
    with checkpoint.open("r+b") as file:
        file.seek(8 + length)
        file.write(b"\xff" * (checkpoint.stat().st_size - 8 - length))
    assert surgery("inspect", checkpoint).output == shown


@pytest.mark.parametrize("form", ["file", "folder", "index"])
def test_what_is_read_without_torch_is_what_torch_reads(form: str, checkpoint: Path, sharded: Path):
    paths = {
        "file": checkpoint,
        "folder": sharded,
        "index": sharded / "model.safetensors.index.json",
    }
    assert contents(paths[form]) == contents_of(read(paths[form]))


def test_shards_say_what_the_index_leaves_out(sharded: Path):
    index = sharded / "model.safetensors.index.json"
    known = json.loads(index.read_text("utf-8"))
    del known["weight_map"]["fc.bias"]
    index.write_text(json.dumps(known), "utf-8")
    assert contents(index) == contents_of(read(index))
    assert "left out: fc.bias" in " ".join(contents(index).notes)


def test_other_formats_and_tied_names_are_shown(tmp_path: Path, surgery):
    tensor = torch.ones(3)
    torch.save({"ema": {"a": tensor, "b": tensor}, "epoch": 3}, tmp_path / "a.pth")
    found = json.loads(surgery("inspect", tmp_path / "a.pth", "--json").stdout)
    assert (found["format"], found["chosen"]) == ("pytorch zip", "ema")
    assert [each["aliases"] for each in found["tensors"]] == [["b"], ["a"]]
    assert (found["bytes"], found["elements"]) == (12, 3)
    torch.save({"ema": {"a": tensor}, "model": {"a": tensor}}, tmp_path / "two.pth")
    done = surgery("inspect", tmp_path / "two.pth")
    assert done.exit_code == 2
    assert "ema" in done.stderr
    assert surgery("inspect", tmp_path / "two.pth", "--inside", "ema").exit_code == 0


def test_a_saved_model_says_which_operations_made_it(tmp_path: Path, surgery):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    library.replace_head(model, 2, heads="2", example=torch.zeros(2, 4))
    library.save(model, tmp_path / "saved.safetensors", target="mine:make")
    done = surgery("inspect", tmp_path / "saved.safetensors")
    assert "replace_head('2': 2)" in done.output
    assert "mine:make" in done.output
    assert "the record of surgery.save" in done.output
    found = json.loads(surgery("inspect", tmp_path / "saved.safetensors", "--json").stdout)
    assert found["operations"] == [{"operation": "replace_head('2': 2)"}]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "no valid JSON"),
        ('{"version": 99}', "later version"),
        ('{"version": 1, "operations": 3}', "malformed"),
        ('{"version": 1, "operations": [{"title": 3}]}', "malformed"),
        ("[]", None),
        ('"mine"', None),
    ],
)
def test_a_record_from_elsewhere_is_no_mistake(
    record: str, said: str | None, tmp_path: Path, surgery
):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"surgery": record})
    done = surgery("inspect", tmp_path / "a.safetensors")
    assert done.exit_code == 0
    assert ("note:" in done.output) == (said is not None)
    assert (said or "") in done.output


def test_names_and_metadata_steer_no_terminal(tmp_path: Path, surgery):
    evil = "fc\x1b[2J\x07.weight"
    save_file({evil: torch.ones(1)}, tmp_path / "a.safetensors", {"by\x1b]0;": "\x1b[31m" * 200})
    done = surgery("inspect", tmp_path / "a.safetensors")
    assert done.exit_code == 0
    assert "\x1b" not in done.output
    assert "\x07" not in done.output
    assert "fc\\x1b[2J\\x07.weight" in done.output
    found = json.loads(surgery("inspect", tmp_path / "a.safetensors", "--json").stdout)
    assert found["tensors"][0]["name"] == evil


MISTAKES = {
    "no such file": ("net.safetensor.safetensors", "no such file or directory"),
    "close": ("nt.safetensors", "perhaps net.safetensors"),
    "url": ("https://example.org/a.pth", "nothing is downloaded"),
    "no checkpoint": ("./empty", "no checkpoint in this directory"),
    "two checkpoints": ("./two", "there are 2 checkpoints in this directory"),
    "close name": ("torchvision:resnet5", "torchvision:resnet50"),
    "bare close name": ("resnet5", "torchvision:resnet50"),
    "no module": ("no_such_module:make", "No module named 'no_such_module'"),
    "no attribute": ("fine:nothing", "has no attribute 'nothing'"),
    "raises on import": ("broken:make", "ZeroDivisionError: division by zero"),
    "exits on import": ("leaving:make", "SystemExit: 3"),
    "missing import": ("needing:make", "No module named 'not_there'"),
    "wrong attribute inside": ("inner:make", "the module raised when it was imported"),
    "needs arguments": ("torch.nn:Linear", "models:make as TARGET"),
    "raises": ("fine:fails", "KeyError: 'bad'"),
    "a model": ("fine:model", "builds nothing"),
    "no model": ("fine:number", "this is no model"),
    "truncated": ("./short.safetensors", "the file ends inside its header"),
    "empty": ("./nothing.pth", "the file is empty"),
    "empty target": ("", "no catalog has this name"),
    "null": ("a\0b.pth", "no path that can be followed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_that_says_what_next(
    name: str, checkpoint: Path, tmp_path: Path, surgery
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for copy in "a", "b":
        shutil.copy(checkpoint, tmp_path / "two" / f"{copy}.safetensors")
    (tmp_path / "short.safetensors").write_bytes(checkpoint.read_bytes()[:50])
    (tmp_path / "nothing.pth").touch()
    for module, code in {
        "broken": "1 / 0",
        "leaving": "raise SystemExit(3)",
        "needing": "import not_there",
        "inner": "import sys\nsys.nothing",
        "fine": "import torch\nmodel = torch.nn.ReLU()\ndef number(): return 3\n"
        "def fails(): raise KeyError('bad')",
    }.items():
        (tmp_path / f"{module}.py").write_text(code, "utf-8")
    target, said = MISTAKES[name]
    done = surgery("inspect", target)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("surgery: ")
    assert said in done.stderr
    assert "  next: " in done.stderr
    assert "\n\n" not in done.stderr
    assert json.loads(surgery("inspect", target, "--json").stderr)["fix"]


def test_a_name_of_two_things_is_asked_about(tmp_path: Path, surgery):
    (tmp_path / "resnet18").mkdir()
    done = surgery("inspect", "resnet18")
    assert done.exit_code == 2
    assert "./resnet18 or torchvision:resnet18" in done.stderr
    assert surgery("inspect", "torchvision:resnet18").exit_code == 0
    assert "no checkpoint in this directory" in surgery("inspect", "./resnet18").stderr


@pytest.mark.parametrize(
    "words",
    [("--num-classes", "3"), ("--example", "1,3"), ("--inside", "ema")],
    ids=lambda words: words[0],
)
def test_an_option_that_says_nothing_is_refused(words, checkpoint: Path, surgery):
    target = "resnet18" if words[0] == "--inside" else checkpoint
    done = surgery("inspect", target, *words)
    assert done.exit_code == 2
    assert f"{words[0]} says nothing about a" in done.stderr


def test_a_page_is_written_whole(checkpoint: Path, tmp_path: Path, surgery):
    page = tmp_path / "page.html"
    page.write_text("old", "utf-8")
    done = surgery("inspect", checkpoint, "--html", page)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.output == surgery("inspect", checkpoint).output
    assert page.read_text("utf-8").lower().startswith("<!doctype html>")
    assert "layers.{0..11}.weight" in page.read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir() if "page" in path.name] == ["page.html"]
    done = surgery("inspect", checkpoint, "--html", tmp_path / "none" / "page.html")
    assert done.exit_code == 2
    assert "no such directory to write to" in done.stderr
    assert done.stdout == ""
