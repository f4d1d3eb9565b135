"""What all commands have in common: help, ends, errors, plugins, completion, imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import click
import pytest
from click.shell_completion import CompletionItem
from click.testing import CliRunner

from surgery.cli import complaints, options, plugged
from surgery.cli.main import COMMANDS, cli
from surgery.errors import SurgeryError
from surgery.families import hookimpl
from surgery.families.plugin import Plugin
from surgery.families.registry import Registry
from tests.cli.conftest import ROOT


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def python(code: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that has the project and nothing else."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# Ends with 9 where torch was imported on the way.
COUNTED = """
import atexit, os, sys
from surgery.cli.main import cli
atexit.register(lambda: "torch" in sys.modules and os._exit(9))
cli.main(sys.argv[1:], "surgery")
"""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_json_and_a_test(name: str, surgery):
    found = command(name)
    words = [word for parameter in found.params for word in parameter.opts]
    assert "--json" in words
    assert "--debug" in words
    lacking = [p.name for p in found.params if isinstance(p, click.Option) and not p.help]
    assert lacking == []
    done = surgery(name, "--help")
    assert done.exit_code == 0
    assert f"surgery {name}" in done.output
    assert len(found.help or "") > 40
    assert "\\b" not in done.output
    assert COMMANDS[name][1].endswith("."), "help is sentences"
    assert (ROOT / "tests" / "cli" / f"test_{name.replace('-', '_')}.py").is_file()


def test_a_line_of_help_is_short():
    assert all(len(said) < 60 for _, said in COMMANDS.values())


def test_help_names_every_command(surgery):
    done = surgery("--help")
    assert done.exit_code == 0
    for name, (_, said) in COMMANDS.items():
        assert name in done.output
        assert said in done.output
    assert surgery("-h").output == done.output


def test_nothing_asked_for_is_answered_with_help(surgery):
    done = surgery()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == surgery("--help").stdout


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), ("plugins",), ("nonsense",)], ids=str
)
def test_neither_torch_nor_a_command_is_imported_for(words: tuple[str, ...]):
    done = python(COUNTED, *words)
    assert done.returncode == (2 if words == ("nonsense",) else 0), done.stderr


def test_the_count_of_imports_would_notice_torch():
    assert python(COUNTED, "inspect", "torch.nn:Identity").returncode == 9


@pytest.mark.parametrize("word", ["inspekt", "audits", "operat"])
def test_an_unknown_command_names_the_closest(word: str, surgery):
    done = surgery(word)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert f"no command {word!r}: did you mean" in done.stderr


def test_mistakes_in_arguments_are_one_paragraph(surgery):
    for words in (
        ("audit",),
        ("audit", "a", "b"),
        ("audit", "--nosuch"),
        ("audit", "a", "--depth", "x"),
    ):
        done = surgery(*words)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr.startswith("surgery: ")
        assert "next: surgery audit --help" in done.stderr
        assert "\n\n" not in done.stderr


def raising(error: BaseException) -> Registry:
    """A registry of one plugin, whose command raises."""

    def add(cli: click.Group) -> None:
        @cli.command()
        @options.json
        def fail(as_json: bool) -> None:
            "Fail."
            raise error

    return Registry([Plugin("mine", add_commands=add)])


ERROR = SurgeryError("no such layer\x1b[2J", where="fc", expected=1, found=2, fix="find\nthem")


def test_an_error_is_said_once_and_plainly(surgery):
    done = surgery("fail", registry=raising(ERROR))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "surgery: no such layer\\x1b[2J",
        "  where: fc",
        "  expected: 1",
        "  found: 2",
        "  next: find",
        "    them",
    ]


def test_an_error_is_an_object_where_json_was_asked_for(surgery):
    done = surgery("fail", "--json", registry=raising(ERROR))
    assert done.exit_code == 2
    assert json.loads(done.stderr) == {
        "schema": "surgery/error/1",
        "error": "SurgeryError",
        "what": "no such layer\x1b[2J",
        "where": "fc",
        "expected": "1",
        "found": "2",
        "fix": "find\nthem",
    }
    assert done.stderr.isascii()
    assert json.loads(surgery("audit", "--json").stderr)["error"] == "UsageError"


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_traceback_is_shown_on_request_alone(place: str, surgery):
    words = ("--debug", "plugins") if place == "before" else ("plugins", "--debug")
    assert surgery(*words).exit_code == 0

    def add(cli: click.Group) -> None:
        @cli.command()
        @options.debug
        def fail() -> None:
            raise ERROR

    registry = Registry([Plugin("mine", add_commands=add)])
    words = ("--debug", "fail") if place == "before" else ("fail", "--debug")
    assert "Traceback" not in surgery("fail", registry=registry).stderr
    done = surgery(*words, registry=registry)
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "in fail" in done.stderr


def test_our_own_mistakes_say_so(surgery):
    done = surgery("fail", registry=raising(ZeroDivisionError("by\nzero")))
    assert done.exit_code == 70
    assert "this is a mistake in surgery" in done.stderr
    assert "ZeroDivisionError: by" in done.stderr
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141), (click.exceptions.Exit(1), 1)],
    ids=["interrupt", "pipe", "exit"],
)
def test_a_run_that_is_ended_ends_quietly(error: BaseException, status: int, surgery):
    done = surgery("fail", registry=raising(error))
    assert done.exit_code == status
    assert len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.output


def test_a_closed_pipe_is_quiet():
    code = "from surgery.cli.main import cli; cli.main(['plugins'] , 'surgery')"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_warning_is_one_line(surgery):
    def add(cli: click.Group) -> None:
        @cli.command()
        @options.json
        def warn(as_json: bool) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("mind\nthis\x1b[2J", stacklevel=1)

    registry = Registry([Plugin("mine", add_commands=add)])
    shown = warnings.showwarning
    done = surgery("warn", registry=registry)
    assert (done.exit_code, done.stderr) == (0, "warning: mind this\\x1b[2J\n")
    said = json.loads(surgery("warn", "--json", registry=registry).stderr)
    assert said["warning"] == "UserWarning"
    assert warnings.showwarning is shown


class Greeting:
    @hookimpl
    def surgery_commands(self, cli: click.Group) -> None:
        @cli.command()
        @click.argument("name")
        def greet(name: str) -> None:
            """Say hello."""
            click.echo(f"hello {name}")


def test_a_plugin_adds_a_command(surgery):
    registry = Registry([Plugin("mine", add_commands=Greeting().surgery_commands)])
    assert surgery("greet", "you", registry=registry).output == "hello you\n"
    done = surgery("--help", registry=registry)
    assert "Commands of plugins" in done.output
    assert "Say hello." in done.output
    assert "did you mean 'greet'" in surgery("gret", registry=registry).stderr


def test_a_plugin_that_breaks_is_a_line(surgery):
    def taken(cli: click.Group) -> None:
        cli.command("audit")(print)

    def broken(cli: click.Group) -> None:
        raise ValueError("no\x1b[2J")

    registry = Registry([Plugin("a", add_commands=taken), Plugin("b", add_commands=broken)])
    done = surgery("--help", registry=registry)
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "plugin 'a' adds a command 'audit', and there is one already" in lines[0]
    assert "plugin 'b' raised in a hook" in lines[1]
    assert "\\x1b[2J" in lines[1]


def test_plugins_are_not_asked_for_a_command_of_the_table(surgery):
    asked: list[click.Group] = []
    registry = Registry([Plugin("mine", add_commands=asked.append)])
    assert surgery("plugins", registry=registry).exit_code == 0
    assert asked == []
    surgery("--help", registry=registry)
    assert len(asked) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered_to(shell: str):
    done = python(COUNTED, _SURGERY_COMPLETE=f"{shell}_source")
    assert done.returncode == 0, done.stderr
    assert "_SURGERY_COMPLETE" in done.stdout
    words = {
        "bash": ("surgery hea", "1"),
        "zsh": ("surgery hea", "1"),
        "fish": ("surgery hea", "hea"),
    }
    typed, word = words[shell]
    done = python(COUNTED, _SURGERY_COMPLETE=f"{shell}_complete", COMP_WORDS=typed, COMP_CWORD=word)
    assert done.returncode == 0, done.stderr
    assert "heads" in done.stdout


def completed(registry: Registry, incomplete: str) -> list[CompletionItem]:
    context = click.Context(cli, obj=registry)
    return options.Target().shell_complete(context, command("audit").params[0], incomplete)


def test_a_target_completes_to_catalog_names_and_files(shipped: Registry):
    found = completed(shipped, "torchvision:resnet1")
    assert [item.value for item in found[:-1]] == [
        name for name in shipped.catalog_names if name.startswith("torchvision:resnet1")
    ]
    assert "torchvision:resnet18" in [item.value for item in found]
    assert found[-1].type == "file"
    assert [item.type for item in completed(Registry.of(), "x")] == ["file"]


def test_a_name_without_its_closest_says_what_there_is():
    assert complaints.no_command("zzz", ["audit"]) == "there is no command 'zzz': there are audit"


def test_the_plugins_installed_are_asked_where_none_were_handed_in(monkeypatch):
    none = Registry.of()
    monkeypatch.setattr(plugged, "default_registry", lambda: none)
    assert plugged.registry() is none
    assert CliRunner().invoke(cli, ["plugins"]).output == "Plugins\nNo plugin is installed.\n"
