"""The report on a recipe that was carried out: its charts, and tables that people can read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import surgery
from surgery.families.registry import Registry
from surgery.recipes import Recipe, Step, parse_recipe, run
from surgery.recipes.runner import Ran
from surgery.reports.chart import Chart
from surgery.reports.report import describe
from tests.reports.models import EVIL, Classifier
from tests.reports.values import ran

TARGET = "tests.reports.models:Classifier"


def charts(ran: Ran) -> dict[str, Chart]:
    return {chart.key: chart for chart in describe(ran).charts}


def size(model: nn.Module) -> int:
    counted = surgery.audit(model)
    return counted.total + counted.buffers


def test_charts_show_the_model_as_it_was_built_and_as_it_is():
    done = ran()
    found = charts(done)
    assert list(found) == ["shares_before", "shares_after", "before", "after"]
    for chart, model in ("before", Classifier()), ("after", done.model):
        assert found[chart].parts[0].size == size(model)
        sizes = {part.address: part.size for part in found[f"shares_{chart}"].parts}
        assert sizes.get("frozen", 0) == surgery.audit(model).frozen
    marks = {part.address: part.marks for part in found["after"].parts}
    assert marks[EVIL] == ("head", "changed")


def test_a_model_that_was_built_and_left_so_is_shown_once():
    done = run(Recipe(TARGET), registry=Registry.of())
    assert list(charts(done)) == ["shares", "model"]


def test_loading_in_between_takes_nothing_from_the_charts(tmp_path: Path):
    torch.save(Classifier().state_dict(), tmp_path / "w.pth")
    steps = (Step("load_weights", {"source": "w.pth"}), Step("freeze", {"patterns": "body*"}))
    done = run(Recipe(TARGET, steps, folder=str(tmp_path)), registry=Registry.of())
    assert charts(done)["after"].parts[0].size == size(done.model)


def test_a_restored_model_has_charts_too(tmp_path: Path):
    first = run(Recipe(TARGET), output=tmp_path / "a.safetensors", registry=Registry.of())
    assert first.saved is not None
    recipe = Recipe(TARGET, restore=str(first.saved.path))
    assert list(charts(run(recipe, registry=Registry.of()))) == ["shares", "model"]


def test_what_the_charts_show_is_no_table_of_a_run():
    said = json.loads(surgery.report(ran(), "json"))
    assert "changes" not in said
    assert said["steps"]


def test_what_is_built_is_shown_as_built():
    recipe = parse_recipe(f"target: {TARGET}")
    built = run(recipe, registry=Registry.of()).outcomes[0]
    assert [chart.key for chart in describe(built).charts] == ["shares", "model"]
    other = surgery.build(Classifier, num_classes=9, example=torch.zeros(2, 8))
    after = {part.address: part.size for part in describe(other).charts[1].parts}
    assert after[""] == size(other.model)
    assert size(other.model) > size(Classifier())
