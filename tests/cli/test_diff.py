"""``surgery diff`` says what differs, and its exit status whether something does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from surgery.cli.main import cli
from surgery.families import Family
from surgery.families.registry import Registry

FAMILY = Family(
    name="tiny",
    classes=("tiny_for_diff.Tiny",),
    packages=("tiny_for_diff",),
    catalog={"tiny": "tiny_for_diff:make"},
)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The exit status, and what was written to either stream."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["diff", *map(str, words)], obj=Registry.of(FAMILY))
    written = capsys.readouterr()
    return ended.value.code, written.out, written.err


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of ``torch.save``, and one in safetensors with one value moved by 0.5."""
    state = nn.Linear(4, 3).state_dict()
    state["bias"] = torch.tensor([1.0, 2.0, 3.0])
    torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}}, tmp_path / "a.pth")
    save_file(state | {"bias": state["bias"] + 0.5}, tmp_path / "b.safetensors")
    return tmp_path / "a.pth", tmp_path / "b.safetensors"


def test_equal_files_end_with_0_and_others_with_1(files, capsys):
    a, b = files
    status, out, err = run(capsys, a, a)
    assert (status, err) == (0, "")
    assert "No difference in name, shape, dtype and value." in out
    status, out, err = run(capsys, a, b)
    assert (status, err) == (1, "")
    assert "by at most 0.5" in out
    assert "module.bias" in out


def test_a_tolerance_and_values_left_out_make_them_equal(files, capsys):
    assert run(capsys, *files, "--tolerance", "0.5,0")[0] == 0
    assert run(capsys, *files, "--tolerance", "0.4,0")[0] == 1
    assert run(capsys, *files, "--tolerance", "1")[0] == 0
    status, out, _ = run(capsys, *files, "--no-values")
    assert status == 0
    assert "No difference in name, shape and dtype." in out


def test_exact_names_undo_no_wrapper(files, capsys):
    status, out, _ = run(capsys, *files, "--exact-names", "--json")
    data = json.loads(out)
    assert status == 1
    assert {row["name"] for row in data["added"]} == {"weight", "bias"}
    assert data["pairs"] == []


def test_json_holds_every_pair(files, capsys):
    status, out, _ = run(capsys, *files, "--json")
    data = json.loads(out)
    assert status == 1
    assert (data["schema"], data["same"]) == ("surgery/difference/1", False)
    pairs = {row["name"]: row for row in data["pairs"]}
    assert (pairs["module.bias"]["verdict"], pairs["module.bias"]["largest"]) == ("changed", 0.5)
    assert (pairs["module.weight"]["verdict"], pairs["module.weight"]["other"]) == (
        "equal",
        "weight",
    )


def test_a_named_model_is_compared_by_its_form_unless_asked(tmp_path, capsys):
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, tmp_path / "x.safetensors")
    (tmp_path / "tiny_for_diff.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Linear(3, 2)\n", "utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        status, out, err = run(capsys, "tiny_for_diff:make", "x.safetensors", "--json")
        data = json.loads(out)
        assert (status, data["values"], data["reshaped_count"]) == (1, False, 1), err
        again = run(capsys, "tiny_for_diff:tiny", "tiny_for_diff:make")
        assert again[0] == 0
        asked = run(capsys, "tiny_for_diff:make", "x.safetensors", "--values", "--json")
        assert json.loads(asked[1])["values"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.pth", "none.pth"), "there is no such file"),
        (("no_such:none", "no_such:none"), "no_such:none"),
        (("a.pth", "a.pth", "--tolerance", "much"), "no tolerance such as"),
        (("a.pth", "a.pth", "--tolerance", "-1"), "a tolerance is one number"),
        (("a.pth",), "Missing argument 'B'"),
    ],
    ids=["no file", "no name", "no number", "negative", "one"],
)
def test_a_mistake_ends_with_2_and_one_paragraph(files, monkeypatch, capsys, words, said):
    monkeypatch.chdir(files[0].parent)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
