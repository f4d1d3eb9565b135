"""A recipe gives the same bytes, or nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import (
    ExpectationError,
    NoHeadError,
    PlanError,
    SurgeryError,
)
from surgery.families.registry import Registry
from surgery.operations.record import Origin, read_record
from surgery.recipes import Expectation, Recipe, Step, parse_recipe, read_recipe, run
from surgery.weights import read
from tests.recipes.models import SMALL, shipped, small

NONE = Registry.of()
HEAD = "- replace_head: {num_classes: 3}\n"


def record_of(path: Path):
    return read_record(read(path).metadata, str(path))


def test_a_recipe_builds_changes_checks_and_writes(tmp_path: Path):
    torch.save(small(num_classes=4).state_dict(), tmp_path / "w.pth")
    (tmp_path / "r.yaml").write_text(
        f"target: {SMALL}\nweights: w.pth\nsteps:\n"
        "- expect: num_classes == 4\n"
        "- adapt_input: {in_channels: 1}\n"
        "- replace_head: {classes: [a, b, c], keep: {0: 3}}\n"
        "- freeze: {except_: heads}\n"
        "- expect: num_classes == 3 and trainable == 27 and trainable_ratio < 0.3\n"
        "expect: classes == ['a', 'b', 'c']\noutput: out.safetensors\n"
    )
    told: list[tuple[str, int, int]] = []
    ran = run(read_recipe(tmp_path / "r.yaml"), registry=NONE, progress=lambda *a: told.append(a))
    assert ran.saved is not None
    assert ran.saved.path == (tmp_path / "out.safetensors").resolve()
    assert [check.passed for check in ran.expectations] == [True] * 3
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for *_, total in told} == {len(told) - 1}
    again = surgery.restore(small, ran.saved.path, registry=NONE).model
    state, others = ran.model.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], others[key]) for key in state)
    assert [p.requires_grad for p in again.parameters()] == [False] * 4 + [True] * 2
    old = torch.load(tmp_path / "w.pth", weights_only=True)
    assert torch.equal(again[5].weight[0], old["5.weight"][3])
    assert "w.pth" in (tmp_path / "r.yaml").read_text()


def test_the_same_recipe_gives_the_same_bytes_from_any_place(tmp_path: Path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    torch.save(small().state_dict(), folder / "w.pth")
    (folder / "r.yaml").write_text(
        f"target: {SMALL}\nseed: 3\nsteps:\n- load_weights: {{source: w.pth}}\n{HEAD}"
    )
    random.seed(1)
    outputs = []
    for where, path in ((tmp_path, "here/r.yaml"), (folder, "r.yaml"), (folder, folder / "r.yaml")):
        monkeypatch.chdir(where)
        torch.rand(3)
        output = tmp_path / f"{len(outputs)}.safetensors"
        run(read_recipe(path), output=output, registry=NONE)
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    other = run(parse_recipe(f"target: {SMALL}\nseed: 4\nsteps:\n{HEAD}"), registry=NONE).model
    assert not torch.equal(other[5].weight, surgery.restore(small, output).model[5].weight)


def test_a_recipe_draws_what_its_seed_does_and_leaves_no_trace():
    torch.manual_seed(7)
    expected = small().state_dict()
    torch.manual_seed(1)
    before, other = torch.get_rng_state(), random.getstate()
    found = run(Recipe(SMALL, seed=7), registry=NONE).model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == other


def test_values_that_constructors_draw_themselves_are_the_same_as_well():
    target = "tests.recipes.models:Drawn"
    one, two = (run(Recipe(target, seed=5), registry=NONE).model for _ in range(2))
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.more, two.more)


def test_a_file_remembers_what_it_was_built_from_and_the_recipe(tmp_path: Path):
    recipe = Recipe(SMALL, (Step("freeze", {"patterns": "0"}),), options={"width": 6}, seed=2)
    saved = run(recipe, output=tmp_path / "a.safetensors", registry=NONE).saved
    assert saved is not None
    origin = record_of(saved.path).origin
    assert origin is not None
    assert (origin.target, origin.options) == (SMALL, {"width": 6})
    assert origin.recipe == {
        "target": SMALL,
        "options": {"width": 6},
        "seed": 2,
        "steps": [{"freeze": {"patterns": "0"}}],
    }


def test_a_file_without_a_target_still_reads(tmp_path: Path):
    assert record_of(surgery.save(small(), tmp_path / "a.safetensors").path).origin is None
    named = surgery.save(small(), tmp_path / "b.safetensors", target="zoo:net").path
    assert record_of(named).origin == Origin("zoo:net")


@pytest.mark.parametrize("target", ["", 3, small], ids=["empty", "number", "callable"])
def test_a_target_that_is_no_name_is_refused_before_anything_is_written(tmp_path: Path, target):
    with pytest.raises(surgery.errors.ArgumentError, match="by its name"):
        surgery.save(small(), tmp_path / "a.safetensors", target=target)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_file_of_a_catalog_is_a_target(tmp_path: Path):
    family = surgery.Family(
        "small", ("torch.nn.modules.container.Sequential",), catalog={"small": SMALL}
    )
    registry = Registry.of(family)
    first = parse_recipe(f"target: small:small\nsteps:\n{HEAD}")
    run(first, output=tmp_path / "a.safetensors", registry=registry)
    second = Recipe("a.safetensors", (Step("freeze"),), folder=str(tmp_path))
    saved = run(second, output=tmp_path / "b.safetensors", registry=registry).saved
    assert saved is not None
    assert saved.operations == ("replace_head('5': 3)", "freeze('*')")
    origin = record_of(saved.path).origin
    assert origin is not None
    assert origin.target == "small:small"


def test_a_file_does_not_decide_what_is_imported_or_called_with_what(tmp_path: Path):
    run(Recipe(SMALL), output=tmp_path / "a.safetensors", registry=NONE)
    path = str(tmp_path / "a.safetensors")
    with pytest.raises(PlanError, match="which model of a catalog"):
        run(Recipe(path), registry=NONE)
    assert run(Recipe(SMALL, restore=path), registry=NONE).model[5].out_features == 4
    family = surgery.Family("small", ("a.b",), catalog={"small": SMALL})
    registry = Registry.of(family)
    run(Recipe("small:small", options={"width": 2}), output=path, overwrite=True, registry=registry)
    with pytest.raises(PlanError, match="--option width=2"):
        run(Recipe(path), registry=registry)
    model = run(Recipe(path, options={"width": 2}), registry=registry).model
    assert model[0].out_channels == 2


def test_an_expectation_that_does_not_hold_names_line_value_and_text(tmp_path: Path):
    text = f"target: {SMALL}\nsteps:\n{HEAD}- expect: num_classes == 5\noutput: out.safetensors"
    with pytest.raises(ExpectationError) as caught:
        run(parse_recipe(text, "r.yaml", folder=str(tmp_path)), registry=NONE)
    error = caught.value
    assert (error.where, error.expected) == ("r.yaml:4:11", "num_classes == 5")
    assert error.found == "num_classes is 3"
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_names_its_line_and_writes_nothing(tmp_path: Path):
    text = f"target: {SMALL}\nsteps:\n- freeze: {{patterns: nothing.*}}\noutput: out.safetensors"
    with pytest.raises(SurgeryError) as caught:
        run(parse_recipe(text, "r.yaml", folder=str(tmp_path)), registry=NONE)
    assert str(caught.value.where).startswith("r.yaml:3:3: patterns=")
    assert list(tmp_path.iterdir()) == []


BUILT: list[str] = []


def counted() -> nn.Module:
    BUILT.append("counted")
    return small()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe("tests.recipes.test_runner:none"), "no catalog has this name"),
        (Recipe("{here}:counted", weights="none.pth"), "no such file"),
        (Recipe("{here}:counted", (Step("load_weights", {"source": "none.pth"}),)), "no such file"),
        (Recipe("{here}:counted", (Step("transplant", {"donor": "none.pth"}),)), "no such file"),
        (Recipe("{here}:counted", (Step("transplant", {"donor": "no:ne"}),)), "no catalog"),
        (Recipe("{here}:counted", restore="none.safetensors"), "no such file"),
        (Recipe("{here}:counted", restore="a.safetensors", num_classes=3), "has its own"),
        (Recipe("{here}:counted", options={"mmap": True}), "no such argument"),
        (Recipe("{here}:counted", (Expectation("parameters ="),)), "no expression"),
        (Recipe("{here}:counted", output="old.safetensors"), "a file already"),
        (Recipe("{here}:counted", output="no/such/place"), "no such directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_be_seen_to_be_wrong_is_found_before_anything_is_built(
    tmp_path: Path, recipe: Recipe, said: str
):
    (tmp_path / "old.safetensors").write_text("old")
    target = recipe.target.format(here=__name__)
    BUILT.clear()
    with pytest.raises(SurgeryError, match=said):
        run(replace(recipe, target=target, folder=str(tmp_path)), registry=NONE)
    assert BUILT == []
    assert (tmp_path / "old.safetensors").read_text() == "old"


def test_an_example_holds_until_another_is_given_or_the_input_is_adapted():
    text = """
    target: torch.nn:Linear
    options: {in_features: 4, out_features: 3}
    example: [2, 4]
    steps:
    - expect: output_shape == [2, 3]
    - replace_head: {num_classes: 5, heads: "", example: [7, 4]}
    - expect: output_shape == [7, 5]
    """
    assert len(run(parse_recipe(text), registry=NONE).expectations) == 2


def test_layers_come_from_a_file_or_from_a_model_that_is_built(tmp_path: Path):
    torch.save(small().state_dict(), tmp_path / "w.pth")
    taken = Recipe(
        SMALL,
        (Step("transplant", {"donor": "w.pth", "mapping": {"0": "0"}}),),
        folder=str(tmp_path),
    )
    expected = torch.load(tmp_path / "w.pth", weights_only=True)["0.weight"]
    assert torch.equal(run(taken, registry=NONE).model[0].weight, expected)
    donor = {"target": SMALL, "weights": "w.pth"}
    built = Recipe(
        SMALL, (Step("transplant", {"donor": donor, "freeze": True}),), folder=str(tmp_path)
    )
    ran = run(built, registry=NONE)
    assert torch.equal(ran.model[0].weight, expected)
    assert not any(p.requires_grad for p in ran.model.parameters())


def test_a_dry_run_does_everything_and_writes_nothing(tmp_path: Path):
    recipe = parse_recipe(
        f"target: {SMALL}\nsteps:\n{HEAD}output: out.safetensors", folder=str(tmp_path)
    )
    ran = run(recipe, registry=NONE, dry_run=True)
    assert ran.saved is None
    assert ran.model[5].out_features == 3
    assert list(tmp_path.iterdir()) == []
    assert "nothing was written" in surgery.report(ran)


def test_a_model_without_heads_fails_as_the_verb_does():
    text = "target: torch.nn:Identity\nsteps:\n- replace_head: {num_classes: 3, example: [1, 3]}"
    with pytest.raises(NoHeadError) as caught:
        run(parse_recipe(text, "r.yaml"), registry=NONE)
    assert str(caught.value.where).startswith("r.yaml:3:3")


def test_a_network_of_the_catalog(tmp_path: Path):
    text = (
        "target: torchvision:resnet18\nexample: [1, 3, 64, 64]\nsteps:\n"
        "- replace_head: {num_classes: 5}\n- freeze: {except_: heads}\n"
        "- expect: parameters == 11_179_077 and output_shape == [1, 5] and trainable_ratio < 0.1\n"
    )
    ran = run(parse_recipe(text), output=tmp_path / "a.safetensors", registry=shipped())
    assert ran.saved is not None
    again = surgery.restore("torchvision:resnet18", ran.saved.path, registry=shipped()).model
    assert again.fc.out_features == 5
    state, others = ran.model.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], others[key]) for key in state)
