"""The report on a recorded graph: a summary for people, every node for programs."""

from __future__ import annotations

import math
from collections import Counter

from surgery.graph.graph import Graph, Leaf, Node
from surgery.reports.example import spec_values
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

_SPEC = (
    Column("spec", "shape"),
    Column("shape", "", presence="data"),
    Column("dtype", "", presence="data"),
)
_NODES = (
    *("index", "role", "operation", "arguments", "keywords", "outputs", "addresses"),
    *("parameters", "module", "flops", "depends_on_input", "inputs"),
)


@describe.register
def _(graph: Graph) -> Report:
    operations = list(graph.operations)
    inputs = [node for node in graph.nodes if node.role == "input"]
    consumed = {addresses for node in operations for addresses in node.parameters}
    return Report(
        "graph",
        f"Graph of a forward pass in {'train' if graph.training else 'eval'} mode",
        facts=(
            Fact("training", "", graph.training, presence="data"),
            Fact("backend", "recorded on", graph.backend),
            Fact("operations", "operations", len(operations), "count"),
            Fact("flops", "floating-point operations", graph.flops, "count"),
            Fact("consumed", "parameters consumed", _elements(graph, consumed), "count"),
            Fact("consumed_tensors", "in tensors", len(consumed), "count"),
            Fact("fingerprint", "", graph.fingerprint, presence="data"),
        ),
        tables=(
            Table(
                "inputs",
                "Inputs",
                (Column("path", "input"), *_SPEC),
                tuple(
                    (node.addresses[0], str(node.outputs[0]), *spec_values(node.outputs[0]))
                    for node in inputs
                ),
            ),
            Table(
                "outputs",
                "Outputs",
                (Column("path", "output"), *_SPEC, Column("made_by", "made by")),
                tuple(_output(graph, leaf) for leaf in graph.leaves),
            ),
            _by_operation(operations),
            _nodes(graph),
        ),
        notes=graph.blind_spots,
    )


def _elements(graph: Graph, consumed: set[tuple[str, ...]]) -> int:
    return sum(
        math.prod(node.outputs[0].shape)
        for node in graph.nodes
        if node.role == "parameter" and node.addresses in consumed
    )


def _output(graph: Graph, leaf: Leaf) -> tuple[Value, ...]:
    made_by = "(outside)"
    if leaf.source is not None:
        node = graph.nodes[leaf.source.node]
        made_by = node.operation or f"{node.role} {node.addresses[0] if node.addresses else ''}"
    return leaf.path, str(leaf.spec), *spec_values(leaf.spec), made_by


def _by_operation(operations: list[Node]) -> Table:
    counts = Counter(node.operation for node in operations)
    flops: Counter[str] = Counter()
    for node in operations:
        flops[node.operation] += node.flops
    rows = [(name, count, flops[name]) for name, count in counts.items()]
    rows.sort(key=lambda row: (-row[2], -row[1], row[0]))
    return Table(
        "by_operation",
        "Operations",
        (
            Column("operation", "operation"),
            Column("count", "times", "count"),
            Column("flops", "floating-point operations", "count", "where any"),
        ),
        tuple(rows),
    )


def _nodes(graph: Graph) -> Table:
    return Table(
        "nodes",
        "Nodes",
        tuple(Column(name, name) for name in _NODES),
        tuple(_node(node) for node in graph.nodes),
        presence="data",
    )


def _node(node: Node) -> tuple[Value, ...]:
    return (
        node.index,
        node.role,
        node.operation,
        tuple(map(str, node.arguments)),
        tuple((name, str(value)) for name, value in node.keywords),
        tuple(map(str, node.outputs)),
        node.addresses,
        node.parameters,
        node.module,
        node.flops,
        node.depends_on_input,
        tuple((ref.node, ref.output) for ref in node.inputs),
    )
