"""What the library says of a mistake is said in options, where the command has them."""

from __future__ import annotations

import click
import pytest
import torch

from surgery.cli.wording import reword
from surgery.errors import SurgeryError
from tests.cli.writing import SMALL, weights

NAMES = ("--overwrite", "--option", "--output", "--example", "--inside", "--rename")
COMMAND = click.Command("do", params=[click.Option([name]) for name in NAMES])


def said(fix: str, where: str = "here", expected: str = "") -> SurgeryError:
    error = SurgeryError("no", where=where, expected=expected, fix=fix)
    reword(error, COMMAND)
    return error


@pytest.mark.parametrize(
    ("fix", "words"),
    [
        ("surgery.save(model, 'a.safetensors', overwrite=True)", "--overwrite, or another name"),
        ("Path('/a b').mkdir(parents=True)", "mkdir -p '/a b'"),
        ("read('none.pth')", "did you mean none.pth?"),
        ("inside='model'", "--inside model"),
        ("rename={'a.b': 'c'}, or drop=x", "--rename a.b=c, or drop=x"),
        ("output='a.safetensors'", "--output a.safetensors"),
        ("picture.save('filters.png')", "-o filters.png"),
        ("pass example=torch.randn(2, 3, 8, 8)", "--example 2,3,8,8"),
        ("surgery.build('zoo:net')", "did you mean zoo:net?"),
        ("surgery apply --help shows a recipe", "surgery do --help"),
        ("copy or download the file again", "copy or download the file again"),
        ("surgery.freeze(model, norm='eval')", "surgery.freeze(model, norm='eval')"),
    ],
    ids=lambda value: None,
)
def test_a_next_step_is_an_option(fix: str, words: str):
    assert said(fix).fix == words


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("target", "TARGET"),
        ("recipe: options", "--option"),
        ("recipe.steps[0].load_weights.rename[1]", "--rename"),
        ("recipe.steps[0].freeze.norm", "recipe.steps[0].freeze.norm"),
        ("file.pth", "file.pth"),
    ],
)
def test_a_place_is_an_option(where: str, words: str):
    assert said("x", where=where).where == words


def test_what_was_expected_names_options_too():
    assert said("x", expected="one, or inside= to choose").expected == "one, or --inside to choose"
    assert (
        said("x", expected="a new name, or overwrite=True").expected == "a new name, or --overwrite"
    )


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (("operate", SMALL, "--num-classes", 3, "-o", "none/a.safetensors"), "mkdir -p"),
        (("operate", SMALL, "--num-classes", 3, "-o", "w.pth"), "--output w.safetensors"),
        (("operate", SMALL, "--num-classes", 3, "-o", "old.safetensors"), "--overwrite"),
        (("audit", SMALL, "--html", "none/a.html"), "mkdir -p"),
        (("audit", "torch.nn:Linear"), "--option in_features=... --option out_features=..."),
        (("audit", "v.pth"), "did you mean w.pth?"),
        (("audit", "w.pth", "--target", "nothing"), "package.module:callable"),
        (("load", SMALL, "two.pth", "-o", "a.safetensors"), "--inside model"),
        (("operate", "w.pth", "--num-classes", 3, "-o", "a.safetensors"), "--weights w.pth"),
        (("operate", SMALL, "--hidden", "0", "--num-classes", 3, "--dry-run"), "operate --help"),
        (("heads", "torchvision:resnet18", "--example", "3"), "--example"),
        (("operate", SMALL, "--freeze", "nothing", "--dry-run"), "surgery audit TARGET"),
    ],
    ids=lambda value: " ".join(map(str, value[:4])) if isinstance(value, tuple) else "",
)
def test_the_next_step_of_a_command_is_one_of_the_shell(surgery, tmp_path, words, step):
    weights(tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    torch.save({"model": state, "ema": state}, tmp_path / "two.pth")
    (tmp_path / "old.safetensors").write_bytes(b"old")
    done = surgery(*words)
    assert done.exit_code == 2, done.stderr
    last = done.stderr.partition("  next: ")[2]
    assert step in last
    assert "surgery." not in last
