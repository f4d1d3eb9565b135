"""What the tests of the commands that write have in common."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.recipes.models import SMALL, small

__all__ = ["SMALL", "parts", "weights"]


def weights(path: Path, **how: int) -> Path:
    """A checkpoint of the small model."""
    torch.save(small(**how).state_dict(), path)
    return path


def parts(folder: Path) -> list[str]:
    """What lies in a folder beside Python's own leavings."""
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
