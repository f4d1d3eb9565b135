"""The report on a matching says every verdict, and what was undone in the names."""

from __future__ import annotations

import json

import torch
import torchvision

import surgery
from surgery.weights.match import match
from surgery.weights.memory import describe
from surgery.weights.verdicts import Matching
from tests.reports import golden
from tests.reports.models import EVIL


def matching() -> Matching:
    with torch.device("meta"):
        model = describe(torchvision.models.resnet18(num_classes=5).state_dict())
        source = describe(torchvision.models.resnet18().half().state_dict())
    old = {key: info for key, info in source.items() if "num_batches_tracked" not in key}
    source = {f"module.net.{key}": info for key, info in old.items()}
    return match(model, {**source, EVIL: source["module.net.fc.bias"]}, drop="layer4.1")


def test_a_matching_as_text():
    found = matching()
    golden.check("matching.txt", surgery.report(found, width=100))
    assert "\x1b" not in str(found)
    assert not any("\x1b" in line for line in found.lines)


def test_every_key_is_in_the_data():
    found = matching()
    data = json.loads(surgery.report(found, "json"))
    assert {row["key"]: row["verdict"] for row in data["model"]} == found.model_verdicts
    assert {row["key"]: row["verdict"] for row in data["source"]} == found.source_verdicts
    assert [row["key"] for row in data["mismatched"]] == ["fc.weight", "fc.bias"]
    assert data["source_prefix"] == "module.net."
