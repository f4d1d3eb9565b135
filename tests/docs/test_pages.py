"""Every page of docs/ does what it shows, from the top to the end."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from surgery.errors import PartialLoadWarning, UncorroboratedWarning
from tests.docs.pages import NOT_RUN, Block, Page, pages, parse
from tests.docs.reader import Reader, commands

PAGES = pages()
BLOCKS = [block for page in PAGES for block in page.blocks]
LANGUAGES = {"python", "console", "yaml", "toml", "text"}


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("page", [page for page in PAGES if page.blocks], ids=lambda p: p.path)
def test_the_page_does_what_it_shows(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
