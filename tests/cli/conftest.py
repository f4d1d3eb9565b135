"""The command, called in this process, with the plugins that ship and no others."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from surgery.cli.main import cli
from surgery.families.registry import Registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shipped() -> Registry:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = settings["project"]["entry-points"]["surgery"]
    return Registry.load([EntryPoint(name, value, "surgery") for name, value in listed.items()])


@pytest.fixture
def surgery(
    shipped: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """``surgery("inspect", path, registry=...)`` in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def run(*words: object, registry: Registry = shipped) -> Result:
        return CliRunner().invoke(cli, [*map(str, words)], obj=registry)

    yield run
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
