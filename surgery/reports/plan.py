"""The reports on a plan (what is going to happen) and on an outcome (what did)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from surgery.graph.graph import Spec
from surgery.operations.plan import Check, Outcome, OutputChange, Plan
from surgery.parameters import Audit
from surgery.reports.areas import chart_of_modules, trainable_bar
from surgery.reports.changes import changed_modules
from surgery.reports.chart import Chart, Mark, Shade
from surgery.reports.example import arguments_table, spec_values
from surgery.reports.report import Column, Fact, Report, Table, Value, describe
from surgery.reports.verdicts import buckets, shades
from surgery.weights.verdicts import Matching

_STEPS = (
    Column("kind", "kind", "label"),
    Column("addresses", "address", "address"),
    Column("before", "before"),
    Column("after", "after"),
    Column("module", "", "address", "data"),
)
_OUTPUTS = (
    Column("path", "output"),
    Column("mode", "mode", "label"),
    Column("before", "before"),
    Column("after", "after"),
    Column("class_axes", "class axis", "text", "where any"),
    Column("before_shape", "", presence="data"),
    Column("before_dtype", "", presence="data"),
    Column("after_shape", "", presence="data"),
    Column("after_dtype", "", presence="data"),
)
_CHECKS = (
    Column("passed", "", "verdict"),
    Column("name", "check"),
    Column("finding", "finding"),
)


@describe.register
def _(plan: Plan) -> Report:
    return Report(
        "plan",
        plan.title,
        _facts(plan),
        _tables(plan),
        plan.notes,
        lead="A plan: nothing was touched.",
        charts=_charts(plan),
    )


@describe.register
def _(outcome: Outcome) -> Report:
    plan = outcome.plan
    passed = sum(check.passed for check in outcome.checks)
    return Report(
        "outcome",
        plan.title,
        (
            Fact("applied", "", outcome.operated is not None, presence="data"),
            Fact("passed", "", passed, "count", "data"),
            Fact("failed", "", len(outcome.checks) - passed, "count", "data"),
            Fact("undo", "", _undo(outcome), presence="data"),
            *_facts(plan),
        ),
        (
            *_tables(plan),
            Table("checks", "Checks", _CHECKS, tuple(map(_check, outcome.checks))),
            _tensors("old", outcome.old),
            _tensors("new", outcome.new),
        ),
        plan.notes,
        lead=_lead(outcome, passed),
        charts=_charts(plan),
    )


def _lead(outcome: Outcome, passed: int) -> str:
    if outcome.operated is None:
        return "A dry run: nothing was touched."
    failed = len(outcome.checks) - passed
    held = f"{failed} of {len(outcome.checks)} checks FAILED" if failed else "verified"
    if outcome.operated.over:
        return f"Done and {held}. It can no longer be undone: {outcome.operated.over}."
    return f"Done and {held}. outcome.undo() takes it back."


def _undo(outcome: Outcome) -> str:
    """Whether it can be undone, and if not, why not."""
    if outcome.operated is None:
        return "it was a dry run"
    return outcome.operated.over or "possible"


def _facts(plan: Plan) -> tuple[Fact, ...]:
    return (
        Fact("title", "", plan.title, presence="data"),
        Fact("parameters", "parameters", plan.parameters, "change"),
        Fact("feature_size", "feature size", plan.feature_size, "count", "where any"),
    )


def _tables(plan: Plan) -> tuple[Table, ...]:
    number = len(plan.steps)
    sizes = (Column("head", "head", "address"), Column("size", "size", "count"))
    arguments = arguments_table(plan.example)
    # The verdicts of a matching say the same, layers folded.
    verdicts = () if plan.matching is None else describe(plan.matching).tables
    return (
        Table(
            "steps",
            "1 step" if number == 1 else f"{number:,} steps",
            _STEPS,
            tuple((s.kind, s.addresses, s.before, s.after, s.module) for s in plan.steps),
            presence="always" if plan.matching is None else "data",
        ),
        *verdicts,
        changed_modules(*(plan.audits or ())),
        Table("outputs", "Outputs", _OUTPUTS, tuple(map(_output, plan.outputs))),
        Table("features", "Features that come out", sizes, tuple(plan.features.items())),
        Table("probes", "", sizes, tuple(plan.probes.items()), presence="data"),
        Table(arguments.key, "", arguments.columns, arguments.rows, presence="data"),
    )


def _charts(plan: Plan) -> tuple[Chart, ...]:
    """The model before and after; of a load one picture, of what was filled."""
    counted = () if plan.matching is None else buckets(plan.matching)
    if plan.audits is None:
        return counted
    before, after = plan.audits
    if plan.matching is not None and before is after:
        filled = _filled(plan.matching, after)
        return *counted, chart_of_modules("model", "What is filled", after, shades=filled)
    marks = _marks(plan, after)
    if before is after:
        return trainable_bar(after), chart_of_modules("model", "The model", after, marks)
    old, new = trainable_bar(before), trainable_bar(after)
    return (
        replace(old, key="shares_before", title="Trainable and frozen, before"),
        replace(new, key="shares_after", title="Trainable and frozen, after"),
        chart_of_modules("before", "Before", before, marks),
        chart_of_modules("after", "After", after, marks),
    )


def _marks(plan: Plan, after: Audit) -> dict[str, tuple[Mark, ...]]:
    """Where the heads are, and what gets other tensors or modules."""
    heads = {*plan.probes, *plan.features}
    replaced = {a for step in plan.steps if step.kind == "module" for a in step.addresses}
    tensors = [step for step in plan.steps if step.kind in ("parameter", "buffer", "values")]
    changed = {a.rpartition(".")[0] for step in tensors for a in step.addresses} | replaced
    changed |= {
        row.address
        for row in after.rows
        if any(row.address.startswith(f"{address}.") for address in replaced)
    }
    marks: dict[str, tuple[Mark, ...]] = {}
    for address in heads | changed:
        head: tuple[Mark, ...] = ("head",) if address in heads else ()
        marks[address] = (*head, "changed") if address in changed else head
    return marks


def _filled(matching: Matching, audit: Audit) -> dict[str, Shade]:
    """By module: what became of everything below it, where that is one thing."""
    found: dict[str, set[Shade]] = {}
    counters = set(matching.counters)
    for key, shade in shades(matching).items():
        address = key
        while address and key not in counters:
            address = address.rpartition(".")[0]
            found.setdefault(address, set()).add(shade)
    return {
        row.address: "partly" if len(found[row.address]) > 1 else next(iter(found[row.address]))
        for row in audit.rows
        if row.address in found
    }


def _output(change: OutputChange) -> tuple[Value, ...]:
    before, after = change.before, change.after
    return (
        change.path,
        change.mode,
        None if before is None else str(before),
        str(after),
        change.class_axes,
        *spec_values(before),
        *spec_values(after),
    )


def _check(check: Check) -> tuple[Value, ...]:
    return check.passed, check.name, check.finding


def _tensors(key: str, tensors: Mapping[str, torch.Tensor]) -> Table:
    """What was replaced or installed, without the tensors themselves."""
    columns = tuple(Column(name, "") for name in ("address", "shape", "dtype", "device"))
    rows = tuple(
        (address, *spec_values(Spec(tuple(tensor.shape), tensor.dtype)), str(tensor.device))
        for address, tensor in tensors.items()
    )
    return Table(key, "", columns, rows, presence="data")
