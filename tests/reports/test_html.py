"""HTML: names are text, nothing is loaded, and every number is there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.families.registry import Registry
from surgery.reports.areas import chart_of_modules, chart_of_tensors
from surgery.reports.chart import Chart, Shade
from surgery.reports.html import as_html
from surgery.reports.report import Column, Fact, Report, Table, describe
from surgery.reports.text import clean
from surgery.weights import read
from tests.reports.models import HOSTILE_NAMES, Classifier, hostile_model, rich_model, vectors
from tests.strategies import module_trees


class Reader(HTMLParser):
    """What a page says: its elements with their attributes, and the text in each kind."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.stack: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "circle", "path", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.stack:
            while self.stack.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts.setdefault(self.stack[-1], []).append(data)

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def hostile_report(name: str) -> Report:
    """A report with one name wherever a report has room for one."""
    columns = (
        Column("a", name, "address"),
        Column("b", name, "label"),
        Column("c", name),
        Column("d", name, "list"),
    )
    rows = ((name, name, name, (name, name)),)
    tables = (Table("t", name, columns, rows), Table("u", name, columns, rows, (0,)))
    tree = chart_of_tensors("tree", name, [(name, name, 4, "tensors")])
    return Report(
        "test", name, (Fact("f", name, name),), tables, (name,), lead=name, charts=(tree,)
    )


SHAPE = Reader(as_html(hostile_report("plain"))).tags()
FRAGMENT = Reader(as_html(hostile_report("plain"), page=False)).tags()


def check_is_text(name: str) -> None:
    report = hostile_report(name)
    for shape, page in (FRAGMENT, False), (SHAPE, True):
        written = as_html(report, page=page)
        found = Reader(written)
        assert found.tags() == shape
        assert clean(name) in "".join(found.texts["span"])
        assert written.replace("\n", "").isprintable() or page
        written.encode()


@pytest.mark.parametrize("number", range(len(HOSTILE_NAMES)))
def test_a_name_is_text_wherever_it_stands(number: int):
    check_is_text(HOSTILE_NAMES[number])


@given(st.text(st.sampled_from("<>&'\"{}%/!-b \u202e\x1b\ud800"), min_size=1, max_size=12))
def test_no_name_adds_an_element(name: str):
    name = name.strip(". ") or "x"
    written = as_html(hostile_report(name), page=False)
    assert Reader(written).tags() == FRAGMENT


def data_of(page: str) -> list[dict[str, list[object]]]:
    [data] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    found: list[dict[str, list[object]]] = json.loads(data)
    return found


def test_data_cannot_end_its_script():
    page = as_html(surgery.audit(hostile_model()))
    [chart] = data_of(page)
    assert set(chart["names"]) == {"", *map(clean, HOSTILE_NAMES)}
    # Plotly reads tags and entities of its own: none is left to read.
    assert not any("<" in str(label) for label in chart["labels"])
    assert "&amp;lt;i&amp;gt;" in " ".join(map(str, chart["labels"]))


def policy(page: str) -> str:
    [content] = [
        attributes["content"]
        for tag, attributes in Reader(page).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    return str(content)


def test_the_page_forbids_itself_to_load_anything():
    for value in (surgery.audit(rich_model()), Registry.of()):
        page = as_html(value)
        rules = dict(rule.strip().split(" ", 1) for rule in policy(page).split(";"))
        assert rules["default-src"] == "'none'"
        assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
        scripts = Reader(page).tags().count("script")
        # One of them is data, which is not run.
        assert len(re.findall(r"'sha256-[\w+/=]{44}'", rules["script-src"])) == scripts - 1
        assert "unsafe" not in rules["script-src"]


def test_what_draws_charts_is_in_a_page_with_a_chart_alone():
    assert len(as_html(Registry.of())) < 60_000
    assert len(as_html(surgery.audit(nn.ReLU()))) < 60_000
    assert len(as_html(surgery.audit(nn.Linear(2, 2)))) > 1_000_000
    assert len(as_html(surgery.audit(nn.Linear(2, 2)), page=False)) < 20_000


def test_the_page_says_every_row_and_the_fragment_what_it_leaves_out():
    names = [f"layer{number}.weight" for number in range(60)]
    weights = read({name: torch.zeros(2) for name in names})
    page = Reader(as_html(weights))
    assert [text for text in page.texts["span"] if text.endswith(".weight")] == names
    fragment = Reader(weights._repr_html_())
    assert [t for t in fragment.texts["span"] if t.endswith(".weight")] == names[:40]
    assert "and 20 more" in fragment.texts["p"]


def test_every_value_shows_itself_in_a_notebook():
    model = Classifier()
    outcome = surgery.replace_head(model, 3, example=vectors())
    heads = surgery.find_heads(model, vectors(), registry=Registry.of())
    graph = surgery.record(model, vectors(), registry=Registry.of())
    audit, weights = surgery.audit(model), read(model.state_dict())
    loading = surgery.load_weights(model, model.state_dict(), dry_run=True)
    for value in (outcome, outcome.plan, heads, graph, audit, weights, loading.plan.matching):
        fragment = value._repr_html_()
        assert fragment == surgery.report(value, "html", page=False)
        found = Reader(fragment)
        assert found.elements[0] == ("div", {"class": "surgery-report"})
        assert "script" not in found.tags()
        assert "link" not in found.tags()
        assert describe(value).title in "".join(found.texts["strong"])
        # Every rule of its style holds inside of it, and nowhere else in the notebook.
        css = re.sub(r"@media[^{]*\{|\}", "\n", "".join(found.texts["style"]))
        heads_of_rules = re.findall(r"^\s*([^\n{]+)\{", css, re.M)
        selectors = [s for rule in heads_of_rules for s in rule.split(",")]
        assert selectors
        assert all(selector.strip().startswith(".surgery-report") for selector in selectors)


def test_a_failed_check_cannot_be_overlooked():
    outcome = surgery.replace_head(Classifier(), 3, example=vectors())
    check = replace(outcome.checks[0], passed=False, finding="it is not so")
    page = Reader(as_html(replace(outcome, checks=(check, *outcome.checks[1:]))))
    styles = [str(attributes.get("class")) for _, attributes in page.elements]
    assert sum("verdict failed" in style for style in styles) == 1
    assert "lead failed" in styles
    assert "it is not so" in page.texts["span"]


def test_heads_are_marked():
    model = Classifier()
    heads = surgery.find_heads(model, vectors(), registry=Registry.of())
    [chart] = data_of(as_html(surgery.audit(model), heads=heads))
    marked = [n for n, m in zip(chart["names"], chart["marks"], strict=True) if "head" in m]
    assert sorted(map(str, marked)) == sorted(clean(head.address) for head in heads)


@pytest.mark.parametrize("heads", ["fc", [3], [None]], ids=repr)
def test_what_is_no_head_is_refused(heads: object):
    with pytest.raises(ArgumentError, match="these are no heads"):
        surgery.report(surgery.audit(nn.Linear(2, 2)), "html", heads=heads)


def test_a_page_is_made_or_not():
    with pytest.raises(ArgumentError, match="a page is made or it is not"):
        surgery.report(surgery.audit(nn.Linear(2, 2)), "html", page="yes")


# Charts.


def check_adds_up(chart: Chart) -> None:
    below = [0] * len(chart.parts)
    for place, part in enumerate(chart.parts):
        assert part.parent < place
        assert part.size > 0
        if part.parent >= 0:
            below[part.parent] += part.size
    assert all(total in (0, part.size) for total, part in zip(below, chart.parts, strict=True))


@given(module_trees())
def test_the_parts_of_a_model_add_up(model: nn.Module):
    audit = surgery.audit(model)
    chart = chart_of_modules("model", "The model", audit)
    check_adds_up(chart)
    whole = audit.total + audit.buffers + audit.packed
    assert [part.size for part in chart.parts[:1]] == ([whole] if whole else [])


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=6), st.integers(0, 9), max_size=12))
def test_the_tensors_of_a_source_add_up(sizes: dict[str, int]):
    chart = chart_of_tensors("t", "T", [(n, "", size, "tensors") for n, size in sizes.items()])
    check_adds_up(chart)
    assert [part.size for part in chart.parts[:1]] == [sum(sizes.values())][: len(chart.parts)]


# Colours.


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_colour(scheme: int):
    css = (files("surgery.reports") / "templates" / "page.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.S)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    pairs = [(name.removesuffix("-ink"), name) for name in colours if name.endswith("-ink")]
    assert len(pairs) == len(get_args(Shade))
    for text in ("ink", "muted", "accent", "good", "bad"):
        pairs += [("page", text), ("surface", text)]
    pairs += [("note", "ink"), ("accent-soft", "accent"), ("bad-soft", "bad")]
    wrong = [(a, b) for a, b in pairs if contrast(colours[a], colours[b]) < 4.5]
    assert wrong == []
