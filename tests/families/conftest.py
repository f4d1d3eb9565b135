"""Registries made of plugins that a test writes down."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from surgery.families.registry import Registry


@pytest.fixture
def load() -> Callable[..., Registry]:
    """Load a registry from entry points: ``load(name="package.module")``."""

    def load(*, disabled: tuple[str, ...] = (), **values: str) -> Registry:
        points = [EntryPoint(name, value, "surgery") for name, value in values.items()]
        return Registry.load(points, disabled)

    return load


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Write a plugin module that can be imported for the length of a test; its name."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, code: str) -> str:
        text = "from surgery.families import *\n" + textwrap.dedent(code)
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        importlib.invalidate_caches()
        return name

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
