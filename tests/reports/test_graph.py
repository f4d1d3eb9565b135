"""Reports on graphs and examples: golden files, and sums that must come out."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import surgery
from surgery.graph.example import Example
from tests.reports import golden
from tests.reports.models import Classifier, vectors
from tests.strategies import HOSTILE, Hostile


def test_a_graph_as_text():
    # Of operators that every version of torch has.
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Flatten(0))
    graph = surgery.record(model, (vectors(),), train=False)
    golden.check("graph.txt", surgery.report(graph, width=80))
    assert str(graph) == surgery.report(graph)


def test_a_graph_as_json():
    graph = surgery.record(nn.Linear(8, 5), vectors(), train=False)
    golden.check("graph.json", surgery.report(graph, "json"))


def test_the_listing_names_every_node():
    graph = surgery.record(Classifier(), vectors())
    lines = graph.listing.splitlines()
    assert len(lines) == len(graph.nodes) + len(graph.leaves) + len(graph.blind_spots)
    assert lines[0].startswith("%0 = input args[0] : float32[2, 8]")


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_nothing_is_lost_and_nothing_overflows(hostile: Hostile):
    model = hostile.build()
    graph = surgery.record(model, hostile.example())
    data = json.loads(surgery.report(graph, "json"))
    operations = list(graph.operations)
    assert data["operations"] == len(operations)
    assert sum(row["count"] for row in data["by_operation"]) == len(operations)
    assert sum(row["flops"] for row in data["by_operation"]) == graph.flops == data["flops"]
    assert [row["index"] for row in data["nodes"]] == list(range(len(graph.nodes)))
    assert [tuple(map(tuple, row["inputs"])) for row in data["nodes"]] == [
        tuple((ref.node, ref.output) for ref in node.inputs) for node in graph.nodes
    ]
    assert [row["path"] for row in data["outputs"]] == [leaf.path for leaf in graph.leaves]
    assert data["notes"] == list(graph.blind_spots)
    assert data["fingerprint"] == graph.fingerprint
    consumed = {a for node in operations for addresses in node.parameters for a in addresses}
    sizes = {
        id(parameter): parameter.numel()
        for address, parameter in model.named_parameters(remove_duplicate=False)
        if address in consumed
    }
    assert data["consumed"] == sum(sizes.values())
    assert max(map(len, surgery.report(graph, width=80).splitlines())) <= 80


def test_values_out_of_range_are_json_too():
    class Masked(nn.Module):
        def forward(self, x):
            return torch.full_like(x, float("-inf")) + float("nan")

    graph = surgery.record(Masked(), vectors())
    text = surgery.report(graph, "json")
    assert "-inf" in json.dumps(json.loads(text, parse_constant=pytest.fail))


# Examples.


def test_an_example_as_text():
    ids = torch.zeros(2, 7, dtype=torch.long)
    example = Example(
        (vectors(), [vectors(), 3], None),
        {"mode": "fast\x1b[2J", "batch": {"ids": ids}, "act": nn.ReLU()},
        train=Example((vectors(), [{"boxes": torch.zeros(1, 4)}])),
    )
    golden.check("example.txt", surgery.report(example, width=80))
    assert str(example) == surgery.report(example)
    rows = json.loads(surgery.report(example, "json"))["arguments"]
    assert {row["mode"] for row in rows} == {"eval", "train"}
    [row] = [row for row in rows if row["path"] == "kwargs['batch']['ids']"]
    assert (row["shape"], row["dtype"]) == ([2, 7], "int64")


def test_an_example_without_arguments_says_so():
    assert str(Example()).splitlines() == ["Example", "forward is called without arguments."]
