"""The notebook runs from top to bottom, and its values show themselves."""

from __future__ import annotations

import os
import re
import sys
from importlib.resources import files
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"


def titles(notebook: nbformat.NotebookNode) -> list[str]:
    """The first line of every value that shows itself as HTML."""
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    assert all(html.startswith('<div class="surgery-report">') for html in shown)
    return [re.findall(r"<strong>(.*?)</strong>", html)[0] for html in shown]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    loaded = nbformat.read(NOTEBOOK, as_version=4)
    # A process of its own, which finds surgery where this one does.
    paths = [str(ROOT), str(files("surgery_plugins")).removesuffix("surgery_plugins")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        loaded, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute(env=environment)
    loaded.metadata["folder"] = str(folder)
    return loaded


def test_every_value_shows_itself(notebook: nbformat.NotebookNode):
    assert titles(notebook) == [
        "Audit",
        "1 head",
        "replace_head(&#39;fc&#39;: 2)",
        "replace_head(&#39;fc&#39;: 2)",
        "freeze(&#39;*&#39;, except_=&#39;heads&#39;)",
        "Graph of a forward pass in train mode",
    ]


def test_what_readers_see_is_what_comes_out(notebook: nbformat.NotebookNode):
    assert titles(nbformat.read(NOTEBOOK, as_version=4)) == titles(notebook)


def test_the_page_is_written(notebook: nbformat.NotebookNode):
    page = (Path(notebook.metadata["folder"]) / "outcome.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert len(page) > 1_000_000
