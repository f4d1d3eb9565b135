"""``surgery plugins``: what is there, what it claims, what failed and why."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

from surgery.families.registry import Registry


def test_every_plugin_is_shown_with_what_it_claims(surgery, shipped: Registry):
    done = surgery("plugins")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(surgery("plugins", "--json").stdout)
    assert found["schema"] == "surgery/registry/1"
    assert [each["name"] for each in found["plugins"]] == [each.name for each in shipped.plugins]
    for plugin in shipped.plugins:
        assert plugin.name in done.output
    families = [each["name"] for each in found["claims"] if each["kind"] == "family"]
    assert families == [family.name for family in shipped.families]


def test_what_failed_says_why(surgery):
    points = [
        EntryPoint("missing", "no_such_module_here", "surgery"),
        EntryPoint("hookless\x1b[2J", "json", "surgery"),
    ]
    registry = Registry.load(points, disabled=("nobody",))
    done = surgery("plugins", registry=registry)
    assert done.exit_code == 0
    assert "No module named 'no_such_module_here'" in done.output
    assert "implements no hook" in done.output
    assert "there is no plugin 'nobody' to disable" in done.output
    assert "\x1b" not in done.output
