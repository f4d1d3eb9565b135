"""``surgery align`` and ``surgery transplant --match graph``, between two ways to write a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

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


def test_what_was_found_reads_a_checkpoint(surgery):
    """In another process, and from a recipe in another folder: the same bytes."""
    donor = Blocks().eval()
    torch.save(donor.state_dict(), "one.pth")
    found = surgery("align", ONE, OTHER, "--example", "2,3,5,5", "--json")
    Path("found.json").write_text(found.stdout, "utf-8")
    Path("kept").mkdir()
    words = ("load", OTHER, "one.pth", "--rename", "found.json", "--min-coverage", 1)
    done = surgery(*words, "-o", "out.safetensors", "--save-recipe", "kept/r.yaml")
    assert done.exit_code == 0, done.stderr
    assert "rename: ../found.json" in Path("kept/r.yaml").read_text("utf-8")
    model = door.restore(OtherBlocks, "out.safetensors").model.eval()
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(model(x), donor(x), atol=1e-6)
    again = surgery("apply", "kept/r.yaml", "-o", "again.safetensors")
    assert again.exit_code == 0, again.stderr
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()


def test_a_file_of_something_else_is_refused(surgery):
    torch.save(Blocks().state_dict(), "one.pth")
    Path("bad.json").write_text("{}", "utf-8")
    for file, said in (("bad.json", "no correspondence"), ("one.pth", "no JSON"), ("x", "no such")):
        done = surgery("load", OTHER, "one.pth", "--rename", file, "-o", "out.safetensors")
        assert done.exit_code == 2
        assert said in done.stderr
        assert not Path("out.safetensors").exists()
    twice = surgery("load", OTHER, "one.pth", "--rename", "bad.json", "--rename", "a=b")
    assert twice.exit_code == 2
    assert "given alone" in twice.stderr


def test_a_checkpoint_has_no_graph(surgery):
    """The next step is a command that exists."""
    torch.save(Blocks().state_dict(), "one.pth")
    done = surgery("align", "one.pth", OTHER, "--example", "2,3,5,5")
    assert done.exit_code == 2
    assert "--target" not in done.stderr
    assert "surgery load RECIPIENT one.pth --rename found.json" in done.stderr
    words = ("transplant", "one.pth", OTHER, "--match", "graph", "-o", "out.safetensors")
    done = surgery(*words)
    assert done.exit_code == 2
    assert "next: the model that it was saved from as DONOR, and --donor-weights" in done.stderr


class Counting(nn.Module):
    """A forward that looks at the numbers of its own weights."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.register_buffer("often", torch.tensor(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(self.often)):
            x = x * 0.5
        return self.layer(x)  # type: ignore[no-any-return]


COUNTING = "tests.cli.test_align:Counting"


def test_a_model_that_needs_its_numbers_gets_them(surgery):
    done = surgery("align", COUNTING, COUNTING, "--example", "2,4")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "2 of 2 tensors" in done.output


def test_each_model_has_its_own_arguments(surgery):
    words = ("align", COUNTING, COUNTING, "--example", "2,4", "--donor-option", "width=3")
    assert surgery(*words).exit_code == 2
    assert surgery(*words, "--option", "width=3").exit_code == 0
    words = ("transplant", *words[1:], "--match", "graph", "--option", "width=3")
    done = surgery(*words, "-o", "out.safetensors", "--save-recipe", "r.yaml")
    assert done.exit_code == 0, done.stderr
    again = surgery("apply", "r.yaml", "-o", "again.safetensors")
    assert again.exit_code == 0, again.stderr
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()


class Flat(Blocks):
    """The same, for images that come as one row of numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.unflatten(1, (3, 5, 5)))


def test_the_recipient_takes_its_input_in_another_form(surgery):
    words = (ONE, "tests.cli.test_align:Flat", "--example", "2,3,5,5")
    assert surgery("align", *words).exit_code == 2
    words += ("--recipient-example", "2,75")
    assert "14 of 14 tensors" in surgery("align", *words).output
    words = ("transplant", *words, "--match", "graph")
    done = surgery(*words, "-o", "out.safetensors", "--save-recipe", "r.yaml")
    assert done.exit_code == 0, done.stderr
    assert "recipient_example: [2, 75]" in Path("r.yaml").read_text("utf-8")
    again = surgery("apply", "r.yaml", "-o", "again.safetensors")
    assert again.exit_code == 0, again.stderr
    assert Path("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
    done = surgery("transplant", ONE, ONE, "--recipient-example", "2,75", "-o", "x.safetensors")
    assert done.exit_code == 2
    assert "--match graph" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set-differences",), "next: --match graph"),
        (("--match", "graph", "--allow-differences"), "next: --set-differences"),
        (("--allow-differences", "--set-differences"), "not both"),
        (("--match", "graph", "--min-coverage", "2"), "not in the range"),
    ],
    ids=["set by name", "allow by graph", "both", "beyond all"],
)
def test_options_that_do_not_go_together(surgery, words: tuple[str, ...], said: str):
    done = surgery("transplant", ONE, OTHER, *words, "--example", "2,3,5,5", "--dry-run")
    assert done.exit_code == 2
    assert said in done.stderr


class Tall(nn.Module):
    """Two layers, of which the last may be another one."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))  # type: ignore[no-any-return]


def test_too_little_in_common_names_the_option(surgery):
    tall = "tests.cli.test_align:Tall"
    words = ("transplant", tall, tall, "--match", "graph", "--example", "2,4", "--dry-run")
    words = (*words, "--donor-option", "classes=3")
    done = surgery(*words, "--min-coverage", "0.9")
    assert done.exit_code == 2
    assert "--min-coverage 0.50" in done.stderr
    assert surgery(*words, "--min-coverage", "0.5").exit_code == 0
