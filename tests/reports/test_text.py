"""Texts: golden files, names that are data, and nothing left out in silence."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.reports import FORMS
from surgery.reports.report import Column, Fact, Report, Table, describe
from surgery.reports.text import as_text, clean, write
from surgery.shown import lower
from tests.reports import golden
from tests.reports.models import EVIL, rich_model
from tests.reports.values import every_value
from tests.strategies import module_trees


def test_an_audit_as_text():
    golden.check("audit.txt", as_text(surgery.audit(rich_model()), width=120))


def test_an_audit_in_one_row():
    golden.check("audit_depth_0.txt", as_text(surgery.audit(rich_model()), depth=0))


def test_a_text_loads_nothing_of_what_makes_a_page():
    code = (
        "import sys, torch, surgery; print(surgery.audit(torch.nn.Linear(2, 2)));"
        "print(sorted({'jinja2', 'plotly', 'surgery.reports.html'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_narrow_page():
    text = as_text(surgery.audit(rich_model()), width=80)
    golden.check("audit_narrow.txt", text)
    assert max(map(len, text.splitlines())) <= 80
    assert "no room for: " in text


@given(module_trees(), st.integers(0, 3), st.integers(60, 160))
def test_the_text_says_what_the_audit_counted(model: nn.Module, depth: int, width: int):
    audit = surgery.audit(model)
    lines = as_text(audit, depth=depth, width=width).splitlines()
    assert lines[1].split() == ["parameters", f"{audit.total:,}"]
    assert all(line == line.rstrip() for line in lines)
    hidden = sum(row.depth > depth for row in audit.rows)
    found = [line for line in lines if "deeper, in the rows above them" in line]
    assert len(found) == bool(hidden)
    assert not hidden or f" {hidden:,} " in found[0]
    assert str(audit) == as_text(audit)


# Names from a model are data.


@given(st.text())
def test_what_is_written_prints(name: str):
    assert clean(name).isprintable()
    assert clean(clean(name)) == clean(name)
    if name.isprintable():
        assert clean(name) == name


@given(st.text(alphabet="\x1b\x9b[]red/\n\r\u202e:smile link=\\", min_size=1))
def test_a_name_cannot_steer_the_terminal_or_the_markup(name: str):
    report = Report(
        name,
        name,
        (Fact("k", name, name),),
        (Table("t", name, (Column("c", name),), ((name,),)),),
        (name,),
    )
    text = as_text(report, width=400)
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count(clean(name).strip()) >= 5


def test_styles_are_codes_only_when_asked_for():
    audit = surgery.audit(rich_model())
    assert "\x1b" not in as_text(audit)
    styled = as_text(audit, styled=True)
    assert "\x1b[" in styled
    assert re.sub(r"\x1b\[[\d;]*m", "", styled).split() == as_text(audit).split()
    assert EVIL not in styled


# Values and mistakes.


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0 B"),
        (1023, "bytes", "1,023 B"),
        (1024, "bytes", "1.0 KiB"),
        (5 * 2**40, "bytes", "5.0 TiB"),
        (1234567, "count", "1,234,567"),
        (1.0, "share", "100.0 %"),
        (0.0, "share", "0.0 %"),
        (0.0002, "share", "< 0.1 %"),
        (0.9998, "share", "> 99.9 %"),
        (None, "share", ""),
        (True, "text", "True"),
        (("a", "b\x07"), "text", "a\nb\\x07"),
        (("a", "b\x07"), "list", "a, b\\x07"),
        ((1, 2), "text", "1, 2"),
        ((), "text", ""),
        ((10, 7), "change", "10 -> 7 (-3)"),
        ((1000, 2000), "change", "1,000 -> 2,000 (+1,000)"),
        (True, "verdict", "ok"),
        (False, "verdict", "FAILED"),
        (True, "answer", "yes"),
        ("", "address", "(the model)"),
        (("", "fc"), "address", "(the model)\nfc"),
    ],
)
def test_values_for_people(value: Any, unit: Any, text: str):
    assert write(value, unit) == text


@pytest.mark.parametrize(
    "wrong", [{"depth": -1}, {"depth": "2"}, {"width": 3}, {"width": True}, {"rows": 0}]
)
def test_a_number_out_of_range_is_an_error(wrong: dict[str, Any]):
    with pytest.raises(ArgumentError) as error:
        as_text(surgery.audit(nn.ReLU()), **wrong)
    assert error.value.where in wrong


def test_what_nobody_describes_is_an_error_that_says_how():
    with pytest.raises(ArgumentError) as error:
        as_text(torch.zeros(2))
    assert "describe.register" in str(error.value)
    with pytest.raises(ArgumentError, match="no form called 'morse'"):
        lower(surgery.audit(nn.ReLU()), "morse")


def test_every_form_takes_every_value():
    values = every_value()
    kinds = {cls for cls in describe.registry if cls is not object}
    assert {type(value) for value in values} == kinds
    assert all(isinstance(surgery.report(value, form), str) for value in values for form in FORMS)
    assert FORMS == ("html", "json", "text")


def test_no_key_of_a_report_hides_another():
    for value in every_value():
        report = describe(value)
        keys = ["schema", "notes", *(part.key for part in (*report.facts, *report.tables))]
        assert len(set(keys)) == len(keys), report.kind
        for table in report.tables:
            names = [column.key for column in table.columns]
            assert len(set(names)) == len(names), table.key
            assert all(len(row) == len(names) for row in table.rows)


def test_what_is_shown_has_a_label():
    for value in every_value():
        report = describe(value)
        assert all(fact.label for fact in report.facts if fact.presence != "data")
        for table in report.tables:
            assert table.title or table.presence == "data"


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_unknown_option_is_an_error_that_lists_the_known(form: str):
    with pytest.raises(ArgumentError) as error:
        surgery.report(Report("kind", "Title"), form, colour=True)
    assert error.value.where == "colour"
    assert {"text": "width", "json": "indent"}[form] in str(error.value.expected)


def test_a_report_is_its_own_description():
    report = Report("kind", "Title")
    assert describe(report) is report
