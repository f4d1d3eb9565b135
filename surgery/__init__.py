"""Change any PyTorch model and prove that only what you meant changed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.families.family import Family
    from surgery.findings import Head, Heads
    from surgery.graph.example import Example
    from surgery.graph.graph import Graph
    from surgery.heads import find_heads
    from surgery.layers import summary
    from surgery.operations.align import align
    from surgery.operations.backbone import remove_head
    from surgery.operations.build import build
    from surgery.operations.correspondence import Correspondence
    from surgery.operations.correspondence_file import read_correspondence
    from surgery.operations.freezing import freeze, unfreeze
    from surgery.operations.head import replace_head
    from surgery.operations.input import adapt_input
    from surgery.operations.keypoints import replace_keypoints
    from surgery.operations.load import load_weights
    from surgery.operations.module import replace
    from surgery.operations.plan import Outcome, Plan
    from surgery.operations.restore import restore
    from surgery.operations.save import save
    from surgery.operations.transplant import transplant
    from surgery.optimizers.following import follow
    from surgery.optimizers.groups import parameter_groups
    from surgery.optimizers.unfreezing import Unfreezing, unfreezing
    from surgery.parameters import Audit, audit
    from surgery.pictures.drawing import Drawing, draw
    from surgery.pictures.picture import Picture, picture
    from surgery.recording import record
    from surgery.reports.report import report
    from surgery.weights.comparison import diff

# The door: every public name and the file it lives in. Lazy, so that importing it costs no torch.
_DOOR = {
    "Audit": "surgery.parameters",
    "Correspondence": "surgery.operations.correspondence",
    "Drawing": "surgery.pictures.drawing",
    "Example": "surgery.graph.example",
    "Family": "surgery.families.family",
    "Graph": "surgery.graph.graph",
    "Head": "surgery.findings",
    "Heads": "surgery.findings",
    "Outcome": "surgery.operations.plan",
    "Picture": "surgery.pictures.picture",
    "Plan": "surgery.operations.plan",
    "Unfreezing": "surgery.optimizers.unfreezing",
    "adapt_input": "surgery.operations.input",
    "align": "surgery.operations.align",
    "audit": "surgery.parameters",
    "build": "surgery.operations.build",
    "diff": "surgery.weights.comparison",
    "draw": "surgery.pictures.drawing",
    "find_heads": "surgery.heads",
    "follow": "surgery.optimizers.following",
    "freeze": "surgery.operations.freezing",
    "load_weights": "surgery.operations.load",
    "parameter_groups": "surgery.optimizers.groups",
    "picture": "surgery.pictures.picture",
    "read_correspondence": "surgery.operations.correspondence_file",
    "record": "surgery.recording",
    "remove_head": "surgery.operations.backbone",
    "replace": "surgery.operations.module",
    "replace_head": "surgery.operations.head",
    "replace_keypoints": "surgery.operations.keypoints",
    "report": "surgery.reports.report",
    "restore": "surgery.operations.restore",
    "save": "surgery.operations.save",
    "summary": "surgery.layers",
    "transplant": "surgery.operations.transplant",
    "unfreeze": "surgery.operations.freezing",
    "unfreezing": "surgery.optimizers.unfreezing",
}

__all__ = [
    "Audit",
    "Correspondence",
    "Drawing",
    "Example",
    "Family",
    "Graph",
    "Head",
    "Heads",
    "Outcome",
    "Picture",
    "Plan",
    "Unfreezing",
    "adapt_input",
    "align",
    "audit",
    "build",
    "diff",
    "draw",
    "find_heads",
    "follow",
    "freeze",
    "load_weights",
    "parameter_groups",
    "picture",
    "read_correspondence",
    "record",
    "remove_head",
    "replace",
    "replace_head",
    "replace_keypoints",
    "report",
    "restore",
    "save",
    "summary",
    "transplant",
    "unfreeze",
    "unfreezing",
]


# What else a program says with the door's name before it: ``surgery.weights.read(path)``.
_ROOMS = ("errors", "families", "recipes", "testing", "weights")


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        value = globals()[name] = getattr(import_module(_DOOR[name]), name)
        return value
    if name in _ROOMS:
        return import_module(f"surgery.{name}")
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
