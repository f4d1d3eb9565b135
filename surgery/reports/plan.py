"""The reports on a plan (what is going to happen) and on an outcome (what did)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from surgery.graph.graph import Spec
from surgery.operations.plan import Check, Outcome, OutputChange, Plan
from surgery.reports.example import arguments_table, spec_values
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

_STEPS = (
    Column("kind", "kind"),
    Column("addresses", "address", "address"),
    Column("before", "before"),
    Column("after", "after"),
    Column("module", "", "address", "data"),
)
_OUTPUTS = (
    Column("path", "output"),
    Column("mode", "mode"),
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
        Table("outputs", "Outputs", _OUTPUTS, tuple(map(_output, plan.outputs))),
        Table("features", "Features that come out", sizes, tuple(plan.features.items())),
        Table("probes", "", sizes, tuple(plan.probes.items()), presence="data"),
        Table(arguments.key, "", arguments.columns, arguments.rows, presence="data"),
    )


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
