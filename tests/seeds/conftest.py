"""The textbook cases are a user's code: they stand on the plugins that are installed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery.families.registry import default_registry

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="package", autouse=True)
def _plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the project's entry points, where it runs from its sources."""
    if default_registry().families:
        yield
        return
    points = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["entry-points"]["surgery"]
    site = tmp_path_factory.mktemp("site")
    info = site / "torch_surgery-0.1.0.dist-info"
    info.mkdir()
    lines = ["[surgery]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (info / "METADATA").write_text("Name: torch-surgery\nVersion: 0.1.0\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        default_registry.cache_clear()
        yield
    default_registry.cache_clear()
