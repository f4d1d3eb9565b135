"""JSON: complete, plain, and the same as a golden file."""

from __future__ import annotations

import json

from hypothesis import given
from torch import nn

import surgery
from surgery.reports.json import as_json
from tests.reports import golden
from tests.reports.models import EVIL, rich_model
from tests.strategies import module_trees


def test_an_audit_as_json():
    text = as_json(surgery.audit(rich_model()))
    golden.check("audit.json", text)
    assert text.isascii()
    assert all(line.isprintable() for line in text.splitlines())
    assert EVIL in [row["address"] for row in json.loads(text)["modules"]]


@given(module_trees())
def test_json_holds_every_row_and_every_number(model: nn.Module):
    audit = surgery.audit(model)
    data = json.loads(as_json(audit, indent=None))
    assert next(iter(data.items())) == ("schema", "surgery/audit/1")
    for name in ("total", "trainable", "frozen", "buffers", "packed", "bytes", "trainable_ratio"):
        assert data[name] == getattr(audit, name)
    assert [row["address"] for row in data["modules"]] == [row.address for row in audit.rows]
    assert [row["total"] for row in data["modules"]] == [row.total for row in audit.rows]
    assert [tuple(row["addresses"]) for row in data["shared"]] == [
        entry.addresses for entry in audit.shared
    ]
    assert sum(row["bytes"] for row in data["memory"]) == data["bytes"]
    assert data["notes"] == list(audit.blind_spots)
