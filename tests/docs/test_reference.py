"""The reference leaves nothing out, and the pages build without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import surgery
from surgery import errors
from tests.docs.pages import DOCS, pages

DOCUMENTED = "".join(path.read_text("utf-8") for path in sorted((DOCS / "reference").glob("*.md")))


def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", surgery.__all__)
def test_every_name_at_the_door_is_in_the_reference(name: str):
    assert re.search(rf":: surgery\.(families\.)?{name}$", DOCUMENTED, re.M)


def test_every_page_is_in_a_table_of_contents():
    listed = {"index", "../README"}
    for page in pages():
        text = (DOCS / page.path).read_text("utf-8")
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S):
            folder = Path(page.path).parent
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(folder / name).as_posix() for name in names}
    assert listed == {page.path.removesuffix(".md") for page in pages()}


@pytest.mark.usefixtures("_installed")
def test_the_command_reference_has_every_command_and_option():
    from surgery.cli.main import COMMANDS, cli

    text = generated().commands()
    for name, (_, short) in COMMANDS.items():
        assert f"## surgery {name}\n" in text
        assert short
        command = cli.get_command(None, name)
        assert command is not None
        for option in command.params:
            for spelling in option.opts:
                assert option.param_type_name == "argument" or spelling in text


def test_the_reference_of_errors_has_every_error():
    text = generated().error_classes()
    tree = generated().error_tree()
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert f"surgery.errors.{name}" in text
            assert name in tree or issubclass(value, Warning)


def test_a_star_in_a_docstring_is_a_star():
    lines = ["weight (out, *kernel)", "``a.*`` and *", ">>> f(*x)"]
    generated().without_emphasis(None, "", "", None, None, lines)
    assert lines == [r"weight (out, \*kernel)", r"``a.*`` and \*", ">>> f(*x)"]


def test_the_start_of_a_sentence_is_no_type():
    lines = [":returns: operations and shapes", "          by path", ":rtype: The graph", ""]
    generated().whole_returns(None, "", "", None, None, lines)
    assert lines == [":returns: The graph: operations and shapes", "          by path", ""]


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
def test_the_pages_build_without_a_warning(tmp_path: Path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"),
            *("-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "how-it-works.html").read_text("utf-8").count("<svg") >= 1
