"""The report on a recipe that was carried out: every operation of it, and what was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from surgery.operations.plan import Plan
from surgery.parameters import Audit, audit
from surgery.recipes.runner import Ran
from surgery.reports.chart import Chart
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

# Tables of an outcome that mean nothing once its model is a file, or that charts show.
_LEFT_OUT = ("old", "new", "probes", "arguments", "example", "changes")


@describe.register
def _(ran: Ran) -> Report:
    reports = [describe(outcome) for outcome in ran.outcomes]
    counted = audit(ran.model)
    size = None if ran.saved is None else ran.saved.nbytes
    return Report(
        "run",
        ran.recipe.name or ran.recipe.target,
        (
            Fact("target", "target", ran.recipe.target),
            Fact(
                "output",
                "written to",
                None if ran.saved is None else str(ran.saved.path),
                presence="where any",
            ),
            Fact("nbytes", "file", size, "bytes", "where any"),
            Fact("seed", "seed", ran.recipe.seed, presence="data"),
            Fact("dry_run", "", ran.dry, presence="data"),
            Fact("parameters", "parameters", counted.total, "count"),
            Fact("trainable", "trainable", counted.trainable, "count"),
            Fact("trainable_ratio", "of all", counted.trainable_ratio, "share"),
        ),
        (
            _operations(ran),
            *_merged(reports, ran),
            Table(
                "expectations",
                "Expectations",
                (
                    Column("passed", "", "verdict"),
                    Column("expression", "expected"),
                    Column("found", "found"),
                ),
                tuple((each.passed, each.name, each.finding) for each in ran.expectations),
            ),
        ),
        tuple(_notes(ran)),
        lead=_lead(ran),
        charts=_charts(ran, counted),
    )


def _charts(ran: Ran, counted: Audit) -> tuple[Chart, ...]:
    """The model as it was built and as it is now, as one operation would show it."""
    plans = [outcome.plan for outcome in ran.outcomes]
    first = next((plan.audits[0] for plan in plans if plan.audits is not None), counted)
    audits = (first, first if len(plans) == 1 else counted)
    steps = tuple(step for plan in plans for step in plan.steps)
    probes = {address: size for plan in plans for address, size in plan.probes.items()}
    count = (first.total, counted.total)
    return describe(Plan("", steps, (), count, probes=probes, audits=audits)).charts


def _lead(ran: Ran) -> str:
    number = sum(len(outcome.checks) for outcome in ran.outcomes)
    if ran.dry:
        return f"A dry run: done in memory, {number} checks passed, and nothing was written."
    if ran.saved is None:
        return f"Done, {number} checks passed. Nothing was to be written."
    return f"Done, {number} checks passed, and written."


def _operations(ran: Ran) -> Table:
    columns = (
        Column("number", "", "count"),
        Column("title", "operation"),
        Column("parameters", "parameters", "change"),
        Column("checks", "checks", "count"),
    )
    rows = tuple(
        (number, outcome.plan.title, outcome.plan.parameters, len(outcome.checks))
        for number, outcome in enumerate(ran.outcomes)
    )
    return Table("operations", "Operations", columns, rows)


def _merged(reports: list[Report], ran: Ran) -> Iterator[Table]:
    """The tables of all operations, those of one kind together, each row with its operation."""
    first = Column("operation", "", "count")
    found: dict[str, tuple[Table, list[tuple[Value, ...]]]] = {}
    for number, (report, outcome) in enumerate(zip(reports, ran.outcomes, strict=True)):
        verb = (outcome.plan.call or {}).get("verb")
        for table in report.tables:
            if table.key in _LEFT_OUT or table.levels:
                continue
            if table.key == "steps" and (not number or verb in ("freeze", "unfreeze")):
                # One for each parameter and layer: people read the share that trains.
                key = "freezing" if number else "beginning"
                table = replace(table, key=key, title="", presence="data")
            kept, rows = found.setdefault(table.key, (table, []))
            if kept.columns == table.columns:
                rows += [(number, *row) for row in table.rows]
    for key, (table, rows) in found.items():
        title = "Steps" if key == "steps" else table.title
        columns = (first, *table.columns)
        yield replace(table, title=title, columns=columns, rows=tuple(rows))


def _notes(ran: Ran) -> Iterator[str]:
    for number, outcome in enumerate(ran.outcomes):
        yield from (f"{number}: {note}" for note in outcome.plan.notes)
    if ran.saved is not None:
        yield from ran.saved.notes
