"""Reports as JSON, for programs: raw numbers, every row, full addresses."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from surgery import shown
from surgery.errors import ArgumentError
from surgery.reports.report import describe


def as_json(value: object, *, indent: int | None = 2) -> str:
    """Lower a value to JSON.

    Args:
        value: a report, or anything that can be described as one.
        indent: spaces for each level; None for one line.

    Returns:
        An object with ``schema`` (``surgery/audit/1``), one entry for each fact, one list of
        objects for each table, and ``notes``, in this order. It is plain ASCII, so that no name
        in it can steer a terminal. Within one version of a schema no key goes and none changes;
        ``schema`` has it as a JSON Schema.

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


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema that reports of one kind keep to.

    Args:
        kind: what the report is about, the middle of its ``schema``: ``audit``.

    Returns:
        The schema (draft 2020-12). It knows every key there is and refuses others.

    Raises:
        ArgumentError: there is no such kind.

    Example:
        >>> from surgery.reports.json import schema
        >>> schema("audit")["properties"]["schema"]
        {'const': 'surgery/audit/1'}
    """
    folder = files("surgery.reports") / "schemas"
    kinds = sorted(file.name.removesuffix(".json") for file in folder.iterdir())
    if kind not in kinds:
        raise ArgumentError(
            "no report is of this kind",
            where="kind",
            expected=", ".join(kinds),
            found=repr(kind),
            fix='schema("audit")',
        )
    found: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text("utf-8"))
    return found


shown.FORMS["json"] = as_json
