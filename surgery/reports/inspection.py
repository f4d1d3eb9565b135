"""The report on what a model is."""

from __future__ import annotations

from surgery.operations.inspection import Inspection
from surgery.reports.areas import chart_of_modules, trainable_bar
from surgery.reports.chart import Mark
from surgery.reports.example import arguments_table
from surgery.reports.report import Fact, Report, describe


@describe.register
def _(inspection: Inspection) -> Report:
    audit = describe(inspection.audit)
    heads = describe(inspection.heads) if inspection.heads is not None else None
    tables = {table.key: table for table in (*audit.tables, *(heads.tables if heads else ()))}
    return Report(
        "inspection",
        "Model",
        facts=(
            Fact("class", "class", inspection.class_name),
            Fact("family", "family", inspection.family or "none: by graph alone"),
            Fact("plugin", "of plugin", inspection.plugin, presence="where any"),
            *audit.facts,
        ),
        tables=(
            arguments_table(inspection.example),
            *(tables[key] for key in ("heads", "outputs") if key in tables),
        ),
        notes=(
            *inspection.notes,
            *(heads.notes if heads else ()),
            *([heads.lead] if heads and heads.lead else ()),
            *audit.notes,
        ),
        charts=(
            trainable_bar(inspection.audit),
            chart_of_modules("model", "The model", inspection.audit, _marks(inspection)),
        ),
    )


def _marks(inspection: Inspection) -> dict[str, tuple[Mark, ...]]:
    heads = inspection.heads or ()
    return {address: ("head",) for head in heads for address in head.addresses}
