"""One plugin: where it came from, and the commands it adds."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import click

from surgery.families.registry import Registry


def test_the_metadata_of_a_distribution_is_looked_at_once():
    looked: list[str] = []

    class Counted:
        version = "1"

        @property
        def name(self) -> str:
            looked.append("name")
            return "many"

    dist = Counted()
    points = [EntryPoint(f"p{number}", "json", "surgery") for number in range(5)]
    for point in points:
        vars(point).update(dist=dist)
    registry = Registry.load(points)
    assert {plugin.distribution for plugin in registry.plugins} == {"many"}
    assert looked == ["name"], "each look parses all of it"


def test_commands_fail_alone(load, write):
    command = "@hookimpl\ndef surgery_commands(cli):\n    cli.command('{}')(print)\n"
    registry = load(
        a=write("a", "@hookimpl\ndef surgery_commands(cli):\n    cli.exit()\n"),
        b=write("b", command.format("greet")),
        c=write("c", command.format("wave") + "    cli.command('greet')(print)\n"),
        d=write("d", "@hookimpl\ndef surgery_families():\n    return []\n"),
        e=write("e", command.format("nod")),
        f=write("f", command.format("audit")),
        g=write("g", command.format("bow") + "    raise SystemExit\n"),
    )
    commands = click.Group()
    failures = registry.add_commands(commands, ["audit"])
    assert [(failure.plugin, failure.stage) for failure in failures] == [
        ("a", "call"),
        ("c", "call"),
        ("f", "call"),
        ("g", "call"),
    ]
    assert [failure.error.found for failure in failures[1:3]] == ["'greet'", "'audit'"]
    assert set(commands.commands) == {"greet", "nod"}, "a plugin adds all of its commands or none"
