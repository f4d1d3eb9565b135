"""What is shown of following, of groups, and of a plan of unfreezing."""

from __future__ import annotations

import json

import torch
from jsonschema import Draft202012Validator

import surgery
import surgery.reports.optimizers
from surgery.reports.json import schema
from tests.optimizers.training import NONE, batches, network, train

EXAMPLE = torch.zeros(2, 8)


def read(value: object) -> dict[str, object]:
    data: dict[str, object] = json.loads(surgery.report(value, "json"))
    kind = str(data["schema"]).split("/")[1]
    Draft202012Validator(schema(kind)).validate(data)
    return data


def test_a_report_says_what_became_of_every_parameter():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, batches(2))
    for arguments in ({"keep": "all"}, {}, {"hidden": (3,)}):
        outcome = surgery.replace_head(
            model, 7, heads="4", example=EXAMPLE, registry=NONE, **arguments
        )
        followed = surgery.follow(optimizer, outcome)
        moved = read(followed)["moved"]
        assert [row["address"] for row in moved] == [each.address for each in followed.moved]
        assert all(each.address in surgery.report(followed, width=200) for each in followed.moved)
        outcome.undo()
        back = surgery.follow(optimizer, outcome)
        assert read(back)["undone"] is True
        assert surgery.report(back).splitlines()[0].endswith("back")


def test_groups_are_shown_with_their_rates():
    model = network()
    for arguments in ({}, {"lr": 0.5, "layer_decay": 0.5, "weight_decay": 0.125}):
        groups = surgery.parameter_groups(model, **arguments, example=EXAMPLE, registry=NONE)
        rows = read(groups)["groups"]
        assert [row["names"] for row in rows] == [group["param_names"] for group in groups]
        assert sum(row["numbers"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert "0.125" in surgery.report(groups, width=120)


def test_a_plan_is_shown_stage_by_stage():
    plan = surgery.unfreezing(network(), every=3, example=EXAMPLE, registry=NONE)
    assert [row["epoch"] for row in read(plan)["phases"]] == [6, 3, 0]
    assert "depth 3" in surgery.report(plan)
