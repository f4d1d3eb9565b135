"""The published schemas: one for every kind of report, and every report keeps to its own."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from jsonschema import Draft202012Validator, ValidationError
from torch import nn

import surgery
from surgery.errors import ArgumentError, SurgeryError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.operations.inspection import inspect_model
from surgery.reports.json import schema
from surgery.weights.contents import contents_of
from tests.reports import golden
from tests.reports.models import Classifier, vectors
from tests.reports.test_difference import difference
from tests.reports.test_registry import registry
from tests.reports.test_verdicts import matching
from tests.reports.test_weights import weights
from tests.reports.values import every_value
from tests.strategies import HOSTILE, Hostile, module_trees

SURGERY = Path(surgery.__file__).parent
KINDS = sorted(file.stem for file in (SURGERY / "reports" / "schemas").iterdir())
# What a command writes of its own, and no value of the library is lowered to.
OF_COMMANDS = {"picture", "error", "warning", "project"}
# Those of them that are no report, and are written by a command as they are.
NO_REPORTS = OF_COMMANDS - {"picture"}
OF_VALUES = [kind for kind in KINDS if kind not in OF_COMMANDS]


def kinds_in(file: Path) -> Iterator[str]:
    """Every ``Report("kind", ...)`` that a file makes."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Report":
            first = node.args[0]
            assert isinstance(first, ast.Constant), f"{file}: a kind that is not written out"
            yield str(first.value)


def check(document: dict[str, Any]) -> None:
    _, kind, _ = document["schema"].split("/")
    Draft202012Validator(schema(kind)).validate(document)


def check_value(value: object) -> None:
    check(json.loads(surgery.report(value, "json")))


def test_every_kind_of_report_has_a_schema():
    made = {kind for file in SURGERY.rglob("*.py") for kind in kinds_in(file)}
    assert made | NO_REPORTS == set(KINDS), "write surgery/reports/schemas/<kind>.json"


def closed(part: Any) -> Iterator[bool]:
    """Of every object in a schema, whether it refuses what it does not know and says its type."""
    if isinstance(part, dict):
        if "properties" in part and part.get("type") == "object":
            yield part["additionalProperties"] is False
            yield set(part["required"]) <= set(part["properties"])
            yield all({"type", "enum", "const"} & set(each) for each in part["properties"].values())
        for each in part.values():
            yield from closed(each)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_sound_and_closed(kind: str):
    found = schema(kind)
    Draft202012Validator.check_schema(found)
    assert found["$id"] == found["properties"]["schema"]["const"]
    assert found["$id"].startswith(f"surgery/{kind}/")
    assert found["title"]
    findings = list(closed(found))
    assert findings
    assert all(findings)


def test_every_value_keeps_to_its_schema():
    kinds = set()
    for value in every_value():
        document = json.loads(surgery.report(value, "json"))
        if document["schema"] != "surgery/kind/1":
            check(document)
            kinds.add(document["schema"].split("/")[1])
    assert kinds == set(OF_VALUES)


def test_full_values_keep_to_their_schema():
    for value in (matching(), difference(), registry(), weights(), contents_of(weights())):
        check_value(value)
    for value in (
        Example((torch.zeros(1), "text"), {"mask": None}, train=Example((torch.zeros(2, 3),))),
        surgery.remove_head(Classifier(), example=vectors()),
        surgery.freeze(Classifier(), "body*"),
        surgery.replace_head(Classifier(), 3, example=vectors(), dry_run=True),
    ):
        check_value(value)
    state = Classifier().state_dict()
    loading = surgery.load_weights(
        Classifier(), {**state, "aux.bias": torch.zeros(7)}, dry_run=True
    )
    check_value(loading)
    check_value(replace(loading.plan, feature_size=3, features={"a": 3}))


@pytest.mark.parametrize("file", sorted(golden.FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_golden_file_keeps_to_its_schema(file: Path):
    check(json.loads(file.read_text("utf-8")))


@given(module_trees())
def test_an_audit_keeps_to_its_schema(model: nn.Module):
    check_value(surgery.audit(model))


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_what_is_said_of_any_model_keeps_to_its_schema(hostile: Hostile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_value(inspect_model(hostile.build(), hostile.example(), registry=Registry.of()))
        try:
            graph = surgery.record(hostile.build(), hostile.example(), registry=Registry.of())
            check_value(graph)
            check_value(
                surgery.replace_head(
                    hostile.build(), 7, example=hostile.example(), registry=Registry.of()
                )
            )
        except SurgeryError:
            assert not hostile.replaceable


@pytest.mark.parametrize("kind", OF_VALUES)
def test_another_key_and_a_missing_one_are_noticed(kind: str):
    values = [json.loads(surgery.report(value, "json")) for value in _by_kind()[kind]]
    for document in values:
        check(document)
        with pytest.raises(ValidationError):
            check({**document, "more": 1})
        with pytest.raises(ValidationError):
            check({key: value for key, value in document.items() if key != "notes"})
        with pytest.raises(ValidationError):
            check({**document, "schema": f"surgery/{kind}/0"})


@cache
def _by_kind() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for value in every_value():
        kind = json.loads(surgery.report(value, "json"))["schema"].split("/")[1]
        found.setdefault(kind, []).append(value)
    return found


def test_a_kind_there_is_not_is_an_error_that_lists_them():
    with pytest.raises(ArgumentError, match="no report is of this kind") as error:
        schema("../audit")
    assert "audit, " in str(error.value)
