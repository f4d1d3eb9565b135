"""The shipped families, found as where `surgery` is installed, also where it is not."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery.families.registry import default_registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _installed(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What pip leaves behind of this project, put on the path where nobody installed it."""
    if importlib.metadata.entry_points(group="surgery"):
        yield
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / "torch_surgery-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8"
    )
    points = "".join(f"{n} = {v}\n" for n, v in project["entry-points"]["surgery"].items())
    (info / "entry_points.txt").write_text(f"[surgery]\n{points}", "utf-8")
    monkeypatch.syspath_prepend(str(site))
    default_registry.cache_clear()
    yield
    default_registry.cache_clear()
