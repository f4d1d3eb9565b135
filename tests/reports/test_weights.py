"""The report on weights says what lies in a source, names of tensors as data."""

from __future__ import annotations

import json

import torch

import surgery
from surgery.weights import read
from tests.reports import golden
from tests.reports.models import EVIL


def weights():
    weight = torch.zeros(3, 4)
    state = {"fc.weight": weight, "head.weight": weight, EVIL: torch.zeros((), dtype=torch.int64)}
    return read({"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}})


def test_weights_as_text():
    golden.check("weights.txt", surgery.report(weights(), width=80))
    assert str(weights()).startswith("Weights\n")


def test_every_tensor_is_there():
    data = json.loads(surgery.report(weights(), "json"))
    assert (data["count"], data["bytes"], data["chosen"]) == (3, 56, "state_dict")
    assert [row["name"] for row in data["tensors"]] == ["fc.weight", "head.weight", EVIL]
    assert data["tensors"][0]["aliases"] == ["head.weight"]
    assert data["metadata"] == []
