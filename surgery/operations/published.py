"""Weights that a library publishes: an object with an address on the net and the class names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch

from surgery.errors import WeightsError

# As torch.hub does: a file named with the start of its SHA-256 is checked against it.
_HASH = re.compile(r"-([0-9a-f]{8,})\.")


@dataclass(frozen=True)
class Published:
    """A source of weights, and what else was said of it.

    Attributes:
        source: what ``surgery.weights.read`` takes.
        classes: the names of its classes, if known.
    """

    source: object
    classes: tuple[str, ...] | None = None


def published(weights: object) -> Published:
    """The source behind weights, downloaded where they are an address on the net.

    The file goes where ``torch.hub`` keeps its own and is downloaded once.

    Args:
        weights: an entry (an object with ``url`` or ``get_state_dict``, and ``meta``), or any
            source, which is returned as it is.

    Raises:
        WeightsError: it cannot be downloaded, or is not what its name says.

    Example:
        >>> published("weights.safetensors").source
        'weights.safetensors'
    """
    url = getattr(weights, "url", None)
    fetch = getattr(weights, "get_state_dict", None)
    if isinstance(weights, (str, Path, Mapping, torch.nn.Module, type)) or not (url or fetch):
        return Published(weights)
    meta = getattr(weights, "meta", None)
    names = meta.get("categories") if isinstance(meta, Mapping) else None
    listed = isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 0
    classes = tuple(map(str, names)) if listed else None  # type: ignore[arg-type]
    return Published(_downloaded(url) if isinstance(url, str) else fetch(), classes)  # type: ignore[misc]


def _downloaded(url: str) -> Path:
    """The file behind an address, from torch's own cache where it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.exists():
        return path
    found = _HASH.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), found[1] if found else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            "these weights cannot be downloaded",
            where=url,
            expected=f"a file for {path.name}",
            found=str(error),
            fix=f"download it elsewhere, and pass weights={path.name!r}",
        ) from error
    return path
