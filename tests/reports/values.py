"""One value of every kind that reports know, each with something to say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import surgery
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.operations.inspection import inspect_model
from surgery.recipes.files import parse_recipe
from surgery.recipes.runner import Ran, run
from surgery.reports.report import Report
from surgery.weights import read
from surgery.weights.contents import contents_of
from surgery.weights.match import match
from tests.reports.models import Classifier, rich_model, vectors

RECIPE = """
target: tests.reports.models:Classifier
example: [2, 8]
steps:
- replace_head: {num_classes: 3}
- freeze: {patterns: "body*"}
- expect: trainable_ratio < 0.9
"""


def ran() -> Ran:
    return run(parse_recipe(RECIPE), registry=Registry.of())


def every_value() -> list[Any]:
    registry = Registry.of()
    outcome = surgery.replace_head(Classifier(), 3, example=vectors(), registry=registry)
    heads = surgery.find_heads(Classifier(), vectors(), registry=registry)
    graph = surgery.record(Classifier(), vectors(), registry=registry)
    found = [surgery.audit(rich_model()), graph, heads, heads[0], outcome, outcome.plan]
    weights = read(nn.Linear(2, 2))
    found += [weights, match(weights.tensors, weights.tensors), contents_of(weights)]
    found.append(inspect_model(Classifier(), vectors(), registry=registry))
    found.append(surgery.diff({"a": torch.ones(2)}, {"a": torch.zeros(2)}, registry=registry))
    found.append(surgery.align(Classifier(), Classifier(), example=vectors(), registry=registry))
    found += [surgery.summary(Classifier(), vectors()), ran()]
    optimizer = torch.optim.SGD(outcome.model.parameters(), lr=0.1)
    again = surgery.replace_head(outcome.model, 4, example=vectors(), registry=registry)
    found.append(surgery.follow(optimizer, again))
    found.append(surgery.parameter_groups(rich_model(), registry=registry))
    found.append(surgery.unfreezing(Classifier(), example=vectors(), registry=registry))
    return [*found, Example(), registry, Report("kind", "Title")]
