"""The report on a registry says of every plugin what its explanation says."""

from __future__ import annotations

import json

import surgery
from surgery.errors import PluginError
from surgery.families.family import Family
from surgery.families.plugin import Plugin, PluginFailure
from surgery.families.registry import Registry
from tests.reports import golden
from tests.reports.models import EVIL


def registry() -> Registry:
    one = Family(name="one", classes=("zoo.models.One", "zoo.models.Two"))
    two = Family(name="two", classes=("zoo.models.Two",))
    error = PluginError(f"plugin {EVIL!r} could not be imported", fix="export SURGERY=1")
    return Registry(
        [Plugin("zoo", "zoo-models", "1.2", families=(one,)), Plugin("own", families=(two,))],
        [PluginFailure(EVIL, "import", error)],
        ["old"],
    )


def test_plugins_as_text():
    golden.check("registry.txt", surgery.report(registry(), width=80))
    assert surgery.report(Registry.of()).splitlines() == ["Plugins", "No plugin is installed."]


def test_every_plugin_claim_failure_and_conflict_is_there():
    data = json.loads(surgery.report(registry(), "json"))
    assert [row["name"] for row in data["plugins"]] == ["zoo", "own"]
    assert [(row["plugin"], row["claims"]) for row in data["claims"]] == [
        ("zoo", ["zoo.models.One", "zoo.models.Two"]),
        ("own", ["zoo.models.Two"]),
    ]
    assert [(row["plugin"], row["stage"]) for row in data["failures"]] == [(EVIL, "import")]
    assert data["conflicts"] == [
        {"class": "zoo.models.Two", "claimants": ["one of zoo", "two of own"]}
    ]
    assert data["disabled"] == ["old"]
