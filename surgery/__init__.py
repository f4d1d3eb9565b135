"""Change any PyTorch model and prove that only what you meant changed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.families.family import Family
    from surgery.graph.example import Example
    from surgery.graph.graph import Graph
    from surgery.heads import Head, Heads, find_heads
    from surgery.layers import summary
    from surgery.parameters import Audit, audit
    from surgery.recording import record

# The door: every public name and the file it lives in. Lazy, so that importing it costs no torch.
_DOOR = {
    "Audit": "surgery.parameters",
    "Example": "surgery.graph.example",
    "Family": "surgery.families.family",
    "Graph": "surgery.graph.graph",
    "Head": "surgery.heads",
    "Heads": "surgery.heads",
    "audit": "surgery.parameters",
    "find_heads": "surgery.heads",
    "record": "surgery.recording",
    "summary": "surgery.layers",
}

__all__ = [
    "Audit",
    "Example",
    "Family",
    "Graph",
    "Head",
    "Heads",
    "audit",
    "find_heads",
    "record",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        value = globals()[name] = getattr(import_module(_DOOR[name]), name)
        return value
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
