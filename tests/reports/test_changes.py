"""What changes in a model: counted before and after, on a dry run as in earnest."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from hypothesis import given
from torch import nn

import surgery
from surgery.errors import SurgeryError
from surgery.families.registry import Registry
from surgery.operations.plan import Outcome
from surgery.parameters import Audit
from surgery.reports.changes import changed_modules
from surgery.reports.report import describe
from tests.reports.models import EVIL, Classifier, vectors
from tests.strategies import HEADED, Hostile, module_trees


def numbers(audit: Audit) -> list[tuple[object, ...]]:
    return [(r.address, r.type, r.total, r.trainable, r.buffers, r.packed) for r in audit.rows]


def replaced(hostile: Hostile, dry_run: bool) -> Outcome | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return surgery.replace_head(
                hostile.build(),
                7,
                example=hostile.example(),
                registry=Registry.of(),
                dry_run=dry_run,
            )
    except SurgeryError:
        assert not hostile.replaceable
        return None


@pytest.mark.parametrize("hostile", HEADED, ids=lambda hostile: hostile.name)
def test_a_dry_run_counts_what_will_be(hostile: Hostile):
    model = hostile.build()
    dry, done = replaced(hostile, True), replaced(hostile, False)
    if dry is None or done is None:
        assert dry is done
        return
    assert dry.plan.audits
    assert done.plan.audits
    for before, after in dry.plan.audits, done.plan.audits:
        assert numbers(before) == numbers(surgery.audit(model))
        assert numbers(after) == numbers(surgery.audit(done.model))
        assert after.total - before.total == done.plan.parameters[1] - done.plan.parameters[0]
    assert describe(done).charts == describe(dry).charts


def test_the_counts_are_of_then_and_not_of_now():
    model = Classifier()
    outcome = surgery.freeze(model, "body*")
    said = describe(outcome).charts
    surgery.replace_head(model, 3, example=vectors())
    assert describe(outcome).charts == said
    assert pickle.loads(pickle.dumps(outcome.plan)).audits == outcome.plan.audits


@given(module_trees(), module_trees())
def test_every_module_that_differs_is_listed_once(old: nn.Module, new: nn.Module):
    before, after = surgery.audit(old), surgery.audit(new)
    table = changed_modules(before, after)
    first = {row[0]: row for row in numbers(before)}
    second = {row[0]: row for row in numbers(after)}
    differing = {a for a in first | second if first.get(a) != second.get(a)}
    listed = [row[0] for row in table.rows]
    assert len(listed) == len(set(listed))
    assert set(listed) == differing
    for address, change, _, total, trainable, _ in table.rows:
        there = address in first, address in second
        assert change == {(0, 1): "added", (1, 0): "removed", (1, 1): "changed"}[there]
        pairs = [first.get(address), second.get(address)]
        assert total == tuple(0 if row is None else row[2] for row in pairs)
        assert trainable == tuple(0 if row is None else row[3] for row in pairs)
    assert not changed_modules(before, surgery.audit(old)).rows


def test_a_removed_module_stands_where_it_was():
    before = surgery.audit(
        nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 3))
    )
    after = surgery.audit(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4)))
    table = changed_modules(before, after)
    assert [(row[0], row[1], row[2]) for row in table.rows] == [
        ("", "changed", "Sequential"),
        ("0", "changed", "Sequential -> Linear"),
        ("0.0", "removed", "ReLU"),
        ("0.1", "removed", "Linear"),
        ("1", "changed", "Linear"),
    ]
    assert table.levels == (0, 1, 2, 2, 1)


def test_charts_mark_heads_and_what_is_replaced():
    outcome = surgery.replace_head(Classifier(), 3, example=vectors(), registry=Registry.of())
    _, _, before, after = describe(outcome).charts
    assert (before.title, after.title) == ("Before", "After")
    for chart in before, after:
        marked = {part.address: part.marks for part in chart.parts if part.marks}
        assert marked == {EVIL: ("head", "changed"), "aux": ("head", "changed")}


def test_a_load_shades_what_it_fills():
    state = Classifier().state_dict()
    state["aux.weight"] = torch.zeros(9, 6)
    state.pop("body.0.bias")
    outcome = surgery.load_weights(Classifier(), state, dry_run=True)
    chart = describe(outcome).charts[-1]
    shades = {part.address: part.shade for part in chart.parts}
    assert shades == {
        "": "partly",
        "body": "partly",
        "body.0": "partly",
        "body.1": "loaded",
        "aux": "partly",
        EVIL: "loaded",
    }
