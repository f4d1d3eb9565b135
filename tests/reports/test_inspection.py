"""The reports on what a model is and what lies in a file: what their pages draw."""

from __future__ import annotations

import torch
from torch import nn

import surgery
from surgery.families.registry import Registry
from surgery.operations.inspection import inspect_model
from surgery.reports.report import describe
from surgery.weights import read
from surgery.weights.contents import contents_of
from tests.reports.models import Classifier, vectors


def test_a_model_is_drawn_with_its_heads_marked():
    found = inspect_model(Classifier(), vectors(), registry=Registry.of())
    shares, model = describe(found).charts
    assert (shares.form, model.form) == ("bar", "nested")
    counted = surgery.audit(Classifier())
    assert model.parts[0].size == counted.total + counted.buffers
    heads = {part.address for part in model.parts if "head" in part.marks}
    assert heads == {address for head in found.heads or () for address in head.addresses}
    assert heads


def test_a_model_without_known_heads_is_drawn_too():
    found = inspect_model(nn.ModuleDict({"a": nn.Linear(2, 2)}), registry=Registry.of())
    assert found.heads is None
    assert [chart.key for chart in describe(found).charts] == ["shares", "model"]


def test_the_tensors_of_a_file_are_drawn_by_their_bytes_each_once():
    shared = torch.ones(4)
    state = {"a.one": shared, "a.two": shared, "b": torch.ones(2, dtype=torch.int64)}
    contents = contents_of(read(state))
    (chart,) = describe(contents).charts
    assert chart.unit == "bytes"
    assert chart.parts[0].size == contents.nbytes == 32
    shades = {part.address: part.shade for part in chart.parts if part.parent >= 0}
    assert shades["b"] == "integers"
    assert shades["a.one"] == "tensors"
