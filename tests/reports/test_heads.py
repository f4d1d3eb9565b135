"""Reports on heads: golden files, and what they must say of any model."""

from __future__ import annotations

import json
import pickle

import pytest
from torch import nn

import surgery
from surgery.families.registry import Registry
from surgery.heads import Heads
from tests.reports import golden
from tests.reports.models import EVIL, Classifier, vectors
from tests.strategies import HOSTILE, Hostile


def find(model: nn.Module, example: object) -> Heads:
    return surgery.find_heads(model, example, registry=Registry.of())


def test_heads_as_text():
    heads = find(Classifier(), vectors())
    golden.check("heads.txt", surgery.report(heads, width=80))
    assert str(heads) == surgery.report(heads)


def test_heads_as_json():
    golden.check("heads.json", surgery.report(find(Classifier(), vectors()), "json"))


def test_one_head_alone():
    heads = find(Classifier(), vectors())
    golden.check("head.txt", surgery.report(heads[1], width=80))
    assert json.loads(surgery.report(heads[0], "json"))["address"] == EVIL


def test_a_model_without_a_head_says_what_it_ends_in():
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    heads = find(model, vectors())
    assert not heads
    text = surgery.report(heads)
    assert text.splitlines() == ["No head", f"{heads.ending}."]
    data = json.loads(surgery.report(heads, "json"))
    assert data["heads"] == data["outputs"] == data["evidence"] == []
    assert data["ending"] == heads.ending


def test_an_uncorroborated_head_is_said_to_be_one():
    model = Classifier()
    assert "note:" not in str(find(model, vectors()))
    del model.num_classes
    heads = find(model, vectors())
    assert (
        f"nothing but the graph says that classes are made at {EVIL}, aux"
        in json.loads(surgery.report(heads, "json"))["notes"][0]
    )


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_nothing_is_lost_and_nothing_overflows(hostile: Hostile):
    heads = find(hostile.build(), hostile.example())
    data = json.loads(surgery.report(heads, "json"))
    assert data["ending"] == heads.ending
    assert len(data["heads"]) == len(heads)
    for row, head in zip(data["heads"], heads, strict=True):
        for name in ("address", "kind", "in_features", "num_classes", "role", "corroborated"):
            assert row[name] == getattr(head, name)
        assert tuple(row["addresses"]) == head.addresses
        assert tuple(row["tied_to"]) == head.tied_to
    outputs = [(head.address, o) for head in heads for o in head.outputs]
    assert [
        (row["head"], row["path"], row["axis"], row["size"], tuple(row["modes"]))
        for row in data["outputs"]
    ] == [(address, o.path, o.axis, o.size, o.modes) for address, o in outputs]
    assert [(row["head"], row["source"], row["says"]) for row in data["evidence"]] == [
        (head.address, item.source, item.says) for head in heads for item in head.evidence
    ]
    lines = surgery.report(heads, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    for head in heads:
        assert any(line.startswith(head.address or "(the model)") for line in lines)


def test_heads_are_still_a_tuple():
    heads = find(Classifier(), vectors())
    assert isinstance(heads, tuple)
    assert heads == tuple(heads)
    again = pickle.loads(pickle.dumps(heads))
    assert (again, again.ending) == (heads, heads.ending)
    assert repr(heads).startswith("Heads((Head(address=")
