"""Reports as JSON, for programs: raw numbers, every row, full addresses."""

from __future__ import annotations

import json
from typing import Any

from surgery import shown
from surgery.reports.report import describe


def as_json(value: object, *, indent: int | None = 2) -> str:
    """Lower a value to JSON.

    Args:
        value: a report, or anything that can be described as one.
        indent: spaces for each level; None for one line.

    Returns:
        An object with ``schema`` (``surgery/audit/1``), one entry for each fact, one list of
        objects for each table, and ``notes``, in this order. It is plain ASCII, so that no name
        in it can steer a terminal. Within one version of a schema no key goes and none changes.

    Raises:
        ArgumentError: nobody has said how to describe this value.

    Example:
        >>> import json, torch, surgery
        >>> from surgery.reports.json import as_json
        >>> json.loads(as_json(surgery.audit(torch.nn.Linear(2, 2))))["modules"][0]["total"]
        6
    """
    report = describe(value)
    data: dict[str, Any] = {"schema": f"surgery/{report.kind}/{report.version}"}
    data |= {fact.key: fact.value for fact in report.facts}
    for table in report.tables:
        keys = [column.key for column in table.columns]
        data[table.key] = [dict(zip(keys, row, strict=True)) for row in table.rows]
    data["notes"] = list(report.notes)
    return json.dumps(data, indent=indent, allow_nan=False)


shown.FORMS["json"] = as_json
