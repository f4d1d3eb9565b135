"""The names of timm's models, from its files: a decorator registers each."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from surgery_plugins.listing import folder

REGISTERED = re.compile(r"^@register_model\s+def (\w+)", re.MULTILINE)


@functools.cache
def registered() -> Mapping[str, str]:
    """The module of every model, by name, without importing timm."""
    models = folder("timm", "models")
    files = sorted(models.glob("*.py")) if models is not None else ()
    return {
        name: file.stem for file in files for name in REGISTERED.findall(file.read_text("utf-8"))
    }


def target(name: str) -> str | None:
    """What builds a model."""
    module = registered().get(name)
    return None if module is None else f"timm.models.{module}:{name}"
