"""What becomes of shapes that differ is decided by pattern, the first that fits."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from surgery.errors import PlanError
from surgery.weights.match import match
from surgery.weights.memory import describe
from surgery.weights.policies import check_policies

with torch.device("meta"):
    MODEL = describe(torchvision.models.resnet18(num_classes=5).state_dict())
    SOURCE = describe(torchvision.models.resnet18().state_dict())


def own(donor: object) -> object:
    return donor


@pytest.mark.parametrize(
    ("on_mismatch", "weight", "bias"),
    [
        ("skip", "skip", "skip"),
        ("error", "error", "error"),
        (own, own, own),
        ({}, "skip", "skip"),
        ({"fc": "adapt"}, "adapt", "adapt"),
        ({"fc.weight": "adapt"}, "adapt", "skip"),
        ({"fc.*": "adapt", "*": "error"}, "adapt", "adapt"),
        ({"*.weight": own, "*": "error"}, own, "error"),
        ({re.compile(r".*\.bias"): "error", "fc": own}, own, "error"),
        ({"conv1": "error"}, "skip", "skip"),
    ],
)
def test_the_first_pattern_that_fits_counts(on_mismatch: object, weight: object, bias: object):
    matching = match(MODEL, SOURCE, on_mismatch=on_mismatch)
    assert {item.key: item.policy for item in matching.mismatched} == {
        "fc.weight": weight,
        "fc.bias": bias,
    }


def test_only_those_whose_policy_is_error_are_refused_and_all_of_them_are_named():
    check_policies(match(MODEL, SOURCE, on_mismatch="adapt").mismatched)
    with pytest.raises(PlanError) as caught:
        check_policies(match(MODEL, SOURCE, on_mismatch="error").mismatched)
    assert "fc.weight: [1000, 512] in the source, [5, 512] in the model" in str(caught.value)
    assert "fc.bias" in str(caught.value)
    with pytest.raises(PlanError) as caught:
        check_policies(match(MODEL, SOURCE, on_mismatch={"fc.bias": "error"}).mismatched)
    assert "fc.weight" not in str(caught.value)


def test_what_is_not_skipped_is_not_warned_about():
    assert "fc.weight" in (match(MODEL, SOURCE).warning() or "")
    assert match(MODEL, SOURCE, on_mismatch="adapt").warning() is None
