"""Change any PyTorch model and prove that only what you meant changed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.families.family import Family
    from surgery.graph.example import Example
    from surgery.graph.graph import Graph

# The door: every public name and the file it lives in. Lazy, so that importing it costs no torch.
_DOOR = {
    "Example": "surgery.graph.example",
    "Family": "surgery.families.family",
    "Graph": "surgery.graph.graph",
}

__all__ = ["Example", "Family", "Graph"]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        value = globals()[name] = getattr(import_module(_DOOR[name]), name)
        return value
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
