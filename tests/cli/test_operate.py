"""``surgery operate`` writes the model that was asked for, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import surgery as door
from surgery.recipes import Step, read_recipe
from tests.cli.writing import SMALL, parts, weights
from tests.recipes.models import small


def test_a_network_of_the_catalog_gets_a_head_and_is_restored_the_same(surgery, shipped, tmp_path):
    result = surgery(
        *("operate", "torchvision:resnet18", "--num-classes", 5, "--freeze", "all-but-heads"),
        *("-o", "out.safetensors", "--save-recipe", "r.yaml"),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "replace_head('fc': 5)" in result.stdout
    assert "\x1b" not in result.stdout
    again = door.restore("torchvision:resnet18", "out.safetensors", registry=shipped).model
    assert again.fc.out_features == 5
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]
    applied = surgery("apply", "r.yaml", "-o", "again.safetensors")
    assert applied.exit_code == 0, applied.stderr
    one, two = (Path(name).read_bytes() for name in ("out.safetensors", "again.safetensors"))
    assert one == two
    assert parts(tmp_path) == ["again.safetensors", "out.safetensors", "r.yaml"]


def test_every_option_is_a_step_of_the_recipe(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\n\nfox\n")
    result = surgery(
        *("operate", SMALL, "--weights", "w.pth", "--classes", "@names.txt", "--keep", "cat=3"),
        *("--keep", "dog=b", "--old-classes", "a,b,c,d", "--head", "5"),
        *("--in-channels", 1, "--freeze", "0", "--freeze", "1.*", "--seed", 9),
        *("--option", "width=8", "-o", "out.safetensors", "--save-recipe", "r.yaml"),
    )
    assert result.exit_code == 0, result.stderr
    recipe = read_recipe("r.yaml")
    assert recipe.steps == (
        Step("adapt_input", {"in_channels": 1}),
        Step(
            "replace_head",
            {
                "classes": ["cat", "dog", "fox"],
                "keep": {"cat": 3, "dog": "b"},
                "old_classes": ["a", "b", "c", "d"],
                "heads": ["5"],
            },
        ),
        Step("freeze", {"patterns": ["0", "1.*"]}),
    )
    assert (recipe.seed, recipe.weights, recipe.options) == (9, "w.pth", {"width": 8})


def test_layers_come_before_the_last(surgery):
    words = ("operate", SMALL, "--num-classes", 3, "--hidden", "6,5", "--dropout", 0.5)
    assert surgery(*words, "-o", "out.safetensors", "--save-recipe", "r.yaml").exit_code == 0
    arguments = {"num_classes": 3, "hidden": [6, 5], "dropout": 0.5}
    assert read_recipe("r.yaml").steps == (Step("replace_head", arguments),)
    assert surgery("apply", "r.yaml", "-o", "again.safetensors").exit_code == 0
    one, two = (Path(name).read_bytes() for name in ("out.safetensors", "again.safetensors"))
    assert one == two


def test_a_recipe_in_another_folder_finds_its_files_and_gives_the_same_bytes(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    (tmp_path / "recipes").mkdir()
    surgery(
        *("operate", SMALL, "--weights", "w.pth", "--num-classes", 3, "-o", "out.safetensors"),
        *("--save-recipe", "recipes/r.yaml"),
    )
    recipe = read_recipe("recipes/r.yaml")
    assert (recipe.weights, recipe.output) == ("../w.pth", "../out.safetensors")
    before = Path("out.safetensors").read_bytes()
    result = surgery("apply", "recipes/r.yaml", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert Path("out.safetensors").read_bytes() == before


def test_a_file_that_was_saved_is_operated_on_again(surgery, tmp_path):
    first = surgery("operate", SMALL, "--num-classes", 3, "-o", "a.safetensors")
    assert first.exit_code == 0, first.stderr
    refused = surgery("operate", "a.safetensors", "--num-classes", 2, "-o", "b.safetensors")
    assert refused.exit_code == 2
    assert "--target" in refused.stderr
    second = surgery(
        *("operate", "a.safetensors", "--target", SMALL, "--freeze", "0", "-o", "b.safetensors")
    )
    assert second.exit_code == 0, second.stderr
    model = door.restore(small, "b.safetensors").model
    assert model[5].out_features == 3
    assert not model[0].weight.requires_grad


def test_a_dry_run_shows_the_plans_and_writes_nothing(surgery, tmp_path):
    result = surgery(
        *("operate", SMALL, "--num-classes", 3, "--dry-run", "-o", "out.safetensors"),
        *("--save-recipe", "r.yaml"),
    )
    assert result.exit_code == 0, result.stderr
    assert "nothing was written" in result.stdout
    assert "5.weight" in result.stdout
    assert parts(tmp_path) == []
    assert surgery("operate", SMALL, "--num-classes", 3, "--dry-run").exit_code == 0


def test_json_is_one_object_with_every_operation(surgery):
    result = surgery("operate", SMALL, "--num-classes", 3, "--dry-run", "--json")
    said = json.loads(result.stdout)
    assert said["schema"] == "surgery/run/1"
    assert said["dry_run"] is True
    assert [each["title"] for each in said["operations"]][1:] == ["replace_head('5': 3)"]
    assert {step["operation"] for step in said["steps"]} == {1}


@pytest.mark.parametrize("file", ["out.safetensors", "r.yaml"])
def test_a_file_that_is_there_is_refused_before_anything_is_done(surgery, tmp_path, file):
    (tmp_path / file).write_text("old")
    words = ("operate", "tests.cli.test_operate:never", "--num-classes", 3)
    words += ("-o", "out.safetensors", "--save-recipe", "r.yaml")
    result = surgery(*words)
    assert result.exit_code == 2
    assert "there is a file already" in result.stderr
    assert "--overwrite" in result.stderr
    assert (tmp_path / file).read_text() == "old"
    assert parts(tmp_path) == [file]


def never() -> torch.nn.Module:
    raise AssertionError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((SMALL,), "nothing to do"),
        ((SMALL, "--hidden", "3"), "--num-classes or --classes"),
        ((SMALL, "--num-classes", "0"), "--num-classes"),
        ((SMALL, "--num-classes", "3", "--hidden", "big"), "4096,2048"),
        ((SMALL, "--num-classes", "3", "--keep", "cat"), "="),
        ((SMALL, "--classes", "@none.txt"), "none.txt"),
        ((SMALL, "--num-classes", "3", "--dropout", "1"), "--dropout"),
        ((SMALL, "--num-classes", "3", "--weights", "none.pth"), "no such file"),
        ((SMALL, "--num-classes", "3", "--option", "mmap=true"), "no such argument"),
        (("tests.recipes.models:smal", "--num-classes", "3"), "nothing can be imported"),
        ((SMALL, "--freeze", "nothing.*"), "nothing in the model has such an address"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_one_paragraph_and_nothing_is_written(surgery, tmp_path, words, said):
    result = surgery("operate", *words, "-o", "out.safetensors")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert parts(tmp_path) == []


def test_it_asks_where_to_write(surgery):
    result = surgery("operate", SMALL, "--num-classes", 3)
    assert result.exit_code == 2
    assert "-o FILE" in result.stderr


def drawn(width: int = 8) -> torch.nn.Module:
    """A model that takes no number of classes."""
    return small(width)


def test_a_trained_head_that_fits_is_kept(surgery, tmp_path):
    weights(tmp_path / "five.pth", num_classes=5)
    old = torch.load(tmp_path / "five.pth", weights_only=True)
    words = ("operate", SMALL, "--num-classes", 5, "--weights", "five.pth")
    done = surgery(*words, "-o", "a.safetensors", "--save-recipe", "r.yaml", "--freeze", "0")
    assert (done.exit_code, done.stderr) == (0, "")
    model = door.restore(small, "a.safetensors").model
    assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())
    assert read_recipe("r.yaml").num_classes == 5
    assert surgery("apply", "r.yaml", "-o", "b.safetensors").exit_code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_a_trained_head_gets_names_and_keeps_its_rows(surgery, tmp_path):
    weights(tmp_path / "five.pth", num_classes=5)
    old = torch.load(tmp_path / "five.pth", weights_only=True)
    words = ("operate", SMALL, "--classes", "a,b,c,d,e", "--weights", "five.pth")
    done = surgery(*words, "-o", "a.safetensors")
    assert (done.exit_code, done.stderr) == (0, "")
    state = door.restore(small, "a.safetensors").model.state_dict()
    assert all(torch.equal(value, old[key]) for key, value in state.items())
    said = json.loads(surgery("inspect", "a.safetensors", "--json").stdout)
    assert said["classes"] == ["a", "b", "c", "d", "e"]


def test_rows_of_a_trained_head_are_kept_by_what_is_asked(surgery, tmp_path):
    weights(tmp_path / "five.pth", num_classes=5)
    old = torch.load(tmp_path / "five.pth", weights_only=True)
    words = ("operate", SMALL, "--num-classes", 7, "--keep", "6=4", "--weights", "five.pth")
    done = surgery(*words, "-o", "a.safetensors")
    assert (done.exit_code, done.stderr) == (0, "")
    model = door.restore(small, "a.safetensors").model
    assert torch.equal(model[5].weight[6], old["5.weight"][4])


def test_a_head_that_is_asked_for_in_so_many_words_is_new(surgery, tmp_path):
    weights(tmp_path / "five.pth", num_classes=5)
    words = ("operate", SMALL, "--num-classes", 5, "--hidden", 6, "--weights", "five.pth")
    assert surgery(*words, "-o", "a.safetensors", "--save-recipe", "r.yaml").exit_code == 0
    assert [step.verb for step in read_recipe("r.yaml").steps] == ["replace_head"]


def test_weights_that_fit_as_it_is_built_change_nothing(surgery, tmp_path):
    weights(tmp_path / "w.pth")
    words = ("operate", SMALL, "--num-classes", 3, "--weights", "w.pth", "--dry-run", "--json")
    said = json.loads(surgery(*words).stdout)
    assert [each["title"] for each in said["operations"]][1:] == ["replace_head('5': 3)"]
