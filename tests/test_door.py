"""The door: what ``import surgery`` offers, explained and without torch."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import surgery

ROOT = Path(__file__).parents[1]

DOOR = {
    *("Correspondence", "align", "read_correspondence"),
    *("Audit", "Example", "Family", "Graph", "Head", "Heads", "Outcome", "Plan"),
    *("Drawing", "Picture", "Unfreezing", "adapt_input", "draw", "picture"),
    *("audit", "build", "diff", "find_heads", "freeze", "load_weights", "record", "remove_head"),
    *("replace", "replace_head", "follow", "parameter_groups", "unfreezing"),
    *("replace_keypoints", "report", "restore", "save", "summary", "transplant", "unfreeze"),
}


def test_the_door_offers_what_it_lists():
    assert list(surgery.__all__) == sorted(set(surgery._DOOR))
    assert sorted([*surgery.__all__, *surgery._ROOMS]) == dir(surgery)
    for name, file in surgery._DOOR.items():
        value = getattr(surgery, name)
        assert value is getattr(importlib.import_module(file), name)
        assert getattr(value, "__module__", file) == file, "the door names where it is made"


def test_rooms_behind_the_door_need_no_import_of_their_own():
    program = f"import surgery\nfor name in {surgery._ROOMS}: getattr(surgery, name).__doc__[0]\n"
    program += "print(surgery.weights.read, surgery.errors.SurgeryError)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_door_offers_exactly_this():
    assert set(surgery.__all__) == DOOR


def test_type_checkers_see_the_same_door():
    door = ast.parse((ROOT / "surgery" / "__init__.py").read_text("utf-8"))
    block = next(node for node in door.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == surgery._DOOR


def unexplained(function: Callable[..., object]) -> list[str]:
    """What the docstring of a function at the door leaves out."""
    doc = inspect.getdoc(function) or ""
    gaps = [] if doctest.DocTestParser().get_examples(doc) else ["an example"]
    return gaps + [
        name
        for name in inspect.signature(function).parameters
        if not re.search(rf"^\s+[\w*, ]*\b{name}\b[\w*, ]*:", doc, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "name", [name for name in surgery.__all__ if inspect.isfunction(getattr(surgery, name))]
)
def test_a_verb_explains_every_argument_and_shows_an_example(name: str):
    assert unexplained(getattr(surgery, name)) == []


def test_an_unexplained_verb_is_noticed():
    def verb(model):
        """Operate.

        Args:
            models: not the argument.
        """

    assert unexplained(verb) == ["an example", "model"]


def test_importing_the_door_imports_no_torch():
    code = "import sys, surgery; dir(surgery); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    control = code.replace("dir(surgery)", "surgery.Graph")
    assert subprocess.run([sys.executable, "-c", control], cwd=ROOT, check=False).returncode == 1
