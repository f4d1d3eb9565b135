"""Reports on plans and outcomes: golden files, and that they say everything that happened."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import SurgeryError, UncorroboratedWarning
from surgery.families.registry import Registry
from surgery.operations.plan import Check, Outcome
from surgery.reports.report import describe
from tests.reports import golden
from tests.reports.models import EVIL, Classifier, vectors
from tests.strategies import HEADED, Hostile

# A golden file holds the layout of a report; how checks are worded is not its business.
CHECKS = (
    Check(
        "outputs",
        True,
        "3 outputs in eval and train: the class axis of 3 is as asked, no other shape moved, "
        "as trying 11 and 13 classes has shown",
    ),
    Check("untouched tensors", True, "7 are the same objects, unwritten"),
)


def operate(**options: Any) -> Outcome:
    return surgery.replace_head(Classifier(), 3, example=vectors(), **options)


def operate_checked() -> Outcome:
    return replace(operate(), checks=CHECKS)


def test_an_outcome_as_text():
    outcome = operate_checked()
    golden.check("outcome.txt", surgery.report(outcome))
    assert str(outcome) == surgery.report(outcome)


def test_an_outcome_on_a_narrow_page():
    text = surgery.report(operate_checked(), width=80)
    golden.check("outcome_narrow.txt", text)
    assert max(map(len, text.splitlines())) <= 80


def test_an_outcome_as_json():
    text = surgery.report(operate_checked(), "json")
    golden.check("outcome.json", text)
    assert text.isascii()
    assert EVIL + ".weight" in json.loads(text)["steps"][0]["addresses"]


def test_a_plan_as_text():
    golden.check("plan.txt", str(operate(dry_run=True).plan))


def test_a_backbone_as_text():
    outcome = surgery.remove_head(Classifier(), example=vectors())
    golden.check("backbone.txt", surgery.report(replace(outcome, checks=CHECKS), width=80))
    data = json.loads(surgery.report(outcome, "json"))
    assert data["feature_size"] == 6
    assert data["features"] == [{"head": EVIL, "size": 6}, {"head": "aux", "size": 6}]


def test_the_second_line_says_what_became_of_it():
    def lead(outcome: Outcome) -> tuple[str, str]:
        return str(outcome).splitlines()[1], json.loads(surgery.report(outcome, "json"))["undo"]

    outcome = operate()
    assert lead(outcome) == ("Done and verified. outcome.undo() takes it back.", "possible")
    outcome.undo()
    assert lead(outcome) == (
        "Done and verified. It can no longer be undone: it was undone already.",
        "it was undone already",
    )
    outcome = operate()
    outcome.commit()
    assert lead(outcome)[1] == "it was committed"
    dry = operate(dry_run=True)
    assert lead(dry) == ("A dry run: nothing was touched.", "it was a dry run")
    assert str(dry.plan).splitlines()[1] == "A plan: nothing was touched."


def test_a_failed_check_cannot_be_overlooked():
    outcome = operate()
    held = len(outcome.checks)
    failed = Check("ties", False, "a = b are no longer one tensor")
    outcome = replace(outcome, checks=(*outcome.checks, failed))
    lines = str(outcome).splitlines()
    assert lines[1].startswith(f"Done and 1 of {held + 1} checks FAILED.")
    [shown] = [line.split() for line in lines if line.startswith("FAILED")]
    assert shown == ["FAILED", "ties", *failed.finding.split()]
    assert sum(line.startswith("ok ") for line in lines) == held
    data = json.loads(surgery.report(outcome, "json"))
    assert (data["passed"], data["failed"]) == (held, 1)


def test_many_steps_are_cut_with_a_word():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    outcome = surgery.freeze(model)
    text = str(outcome)
    assert "60 steps" in text
    assert "  and 20 more" in text.splitlines()
    assert "more" not in surgery.report(outcome, rows=60)
    assert len(json.loads(surgery.report(outcome, "json"))["steps"]) == 60


def scalars(value: object) -> Iterator[object]:
    if isinstance(value, tuple):
        for item in value:
            yield from scalars(item)
    else:
        yield value


@pytest.mark.parametrize("hostile", HEADED, ids=lambda hostile: hostile.name)
def test_nothing_is_lost_and_nothing_overflows(hostile: Hostile):
    model = hostile.build()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncorroboratedWarning)
            outcome = surgery.replace_head(
                model, 7, example=hostile.example(), registry=Registry.of()
            )
    except SurgeryError:
        assert not hostile.replaceable
        return
    plan = outcome.plan
    text = surgery.report(outcome, "json")
    data = json.loads(text)
    assert json.dumps(data, indent=2) == text
    assert data["title"] == plan.title
    assert tuple(data["parameters"]) == plan.parameters
    assert [
        (step["kind"], tuple(step["addresses"]), step["before"], step["after"])
        for step in data["steps"]
    ] == [(step.kind, step.addresses, step.before, step.after) for step in plan.steps]
    assert [
        (row["mode"], row["path"], tuple(row["before_shape"]), tuple(row["after_shape"]))
        for row in data["outputs"]
    ] == [(o.mode, o.path, o.before.shape, o.after.shape) for o in plan.outputs]
    assert [tuple(row["class_axes"]) for row in data["outputs"]] == [
        o.class_axes for o in plan.outputs
    ]
    assert [(row["passed"], row["name"]) for row in data["checks"]] == [
        (check.passed, check.name) for check in outcome.checks
    ]
    for name, tensors in ("old", outcome.old), ("new", outcome.new):
        assert {row["address"]: tuple(row["shape"]) for row in data[name]} == {
            address: tuple(tensor.shape) for address, tensor in tensors.items()
        }
    assert data["notes"] == list(plan.notes)
    lines = surgery.report(outcome, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("ok ") for line in lines) == len(outcome.checks)


def test_a_report_holds_no_tensor_and_no_module():
    outcome = operate(hidden=(4,))
    assert any(isinstance(step.new, nn.Module) for step in outcome.plan.steps)
    report = describe(outcome)
    values = [fact.value for fact in report.facts]
    values += [row for table in report.tables for row in table.rows]
    found = {type(item) for value in values for item in scalars(value)}
    assert found <= {str, int, float, bool, type(None)}
    assert not any(isinstance(item, torch.Size) for value in values for item in scalars(value))
