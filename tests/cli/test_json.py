"""With ``--json`` every command writes what its published schema says, whatever happens."""

from __future__ import annotations

import json
import warnings
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator

from surgery.cli import options
from surgery.cli.main import COMMANDS
from surgery.errors import SurgeryError
from surgery.families.plugin import Plugin
from surgery.families.registry import Registry
from surgery.reports.json import schema
from tests.cli.writing import SMALL, weights

STEP = ("--num-classes", "3", "--dry-run")
LAYER = ("--layer", "0", "-o", "kernels.png")
GRAPH = ("--graph", "-o", "graph.svg", "--example", "1,3,8,8")
CALLS: dict[str, list[tuple[str, ...]]] = {
    "align": [(SMALL, SMALL, "--example", "1,3,8,8")],
    "apply": [("r.yaml", "--dry-run")],
    "audit": [(SMALL,)],
    "diff": [(SMALL, "w.pth"), ("w.pth", "w.pth")],
    "heads": [(SMALL,)],
    "inspect": [(SMALL,), ("w.pth",)],
    "load": [(SMALL, "w.pth", "--dry-run"), (SMALL, "w.pth", "-o", "out.safetensors")],
    "new-plugin": [("tinynetwork",)],
    "operate": [(SMALL, *STEP), (SMALL, "--freeze", "0", "--dry-run")],
    "picture": [(SMALL, *LAYER), (SMALL, *GRAPH)],
    "plugins": [()],
    "summary": [(SMALL, "--example", "1,3,8,8")],
    "transplant": [("w.pth", SMALL, "--map", "0=0", "--dry-run")],
}


def check(text: str) -> dict[str, Any]:
    """One document, which keeps to the schema that it names."""
    found: dict[str, Any] = json.loads(text)
    _, kind, _ = found["schema"].split("/")
    Draft202012Validator(schema(kind)).validate(found)
    assert text.isascii()
    return found


def test_every_command_is_called():
    assert set(CALLS) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_a_command_writes_keeps_to_its_schema(surgery, tmp_path, name: str):
    weights(tmp_path / "w.pth")
    (tmp_path / "r.yaml").write_text(
        f"target: {SMALL}\nsteps:\n- replace_head: {{num_classes: 3}}\n"
    )
    for words in CALLS[name]:
        done = surgery(name, *words, "--json")
        assert done.exit_code in (0, 1 if name == "diff" else 0), done.stderr
        check(done.stdout)
        for line in done.stderr.splitlines():
            check(line)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_mistake_keeps_to_its_schema_and_writes_nothing(surgery, name: str):
    for words in (("--nosuch",), (*["zoo:none"] * (len(CALLS[name][0]) or 1),)):
        done = surgery(name, *words, "--json")
        assert (done.exit_code, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert check(line)["what"]


def test_what_an_expectation_found_keeps_to_the_schema_of_errors(surgery, tmp_path):
    (tmp_path / "r.yaml").write_text(f"target: {SMALL}\nexpect: parameters == 0\n")
    done = surgery("apply", "r.yaml", "--dry-run", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert check(done.stderr)["error"] == "ExpectationError"


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("\x1b[2J\u2028"), SurgeryError("no\x1b", found=3)],
    ids=["ours", "known"],
)
def test_errors_and_warnings_keep_to_their_schemas(surgery, error: Exception):
    def add(cli: click.Group) -> None:
        @cli.command()
        @options.json
        def fail(as_json: bool) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("mind\nthis\x1b[2J", stacklevel=1)
            raise error

    done = surgery("fail", "--json", registry=Registry([Plugin("mine", add_commands=add)]))
    said = [check(line)["schema"] for line in done.stderr.splitlines()]
    assert said == ["surgery/warning/1", "surgery/error/1"]
