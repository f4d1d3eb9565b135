"""With how many classes a target is to be built, so that a checkpoint fits all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surgery.errors import SurgeryError
from surgery.families.registry import Registry
from surgery.operations.build import constructed, matched
from surgery.operations.target import Target, resolve_target
from surgery.weights.source import read
from surgery.weights.value import Weights
from surgery.weights.verdicts import Mismatch


def fitting_classes(
    target: str, weights: str, options: Mapping[str, Any], registry: Registry
) -> int | None:
    """Find the number of classes that a checkpoint was made with. No tensor is read.

    Args:
        target: the name of what builds the model.
        weights: the checkpoint.
        options: further arguments for what builds the model.
        registry: the plugins to ask.

    Returns:
        The number, where the target takes one and the checkpoint fits it then and not as it is
        built otherwise; None where it is as good as any, or nothing says so. Whatever is wrong
        with either, whoever builds the model says.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, f"{folder}/w.pth")
        ...     options = {"in_features": 2, "out_features": 3}
        ...     print(fitting_classes("torch.nn:Linear", f"{folder}/w.pth", options, Registry.of()))
        None
    """
    try:
        with torch.inference_mode(False):
            resolved, source = resolve_target(target, registry), read(weights, registry=registry)
            plain = _misfits(resolved, None, options, source, registry)
            if not plain:
                return None
            axes = [(item.expected, item.found) for item in plain]
            found = {
                size for pair in axes if len(pair[0]) == len(pair[1]) for size in _other(*pair)
            }
            for number in sorted(found):
                if _misfits(resolved, number, options, source, registry) == ():
                    return number
    except SurgeryError:
        return None
    return None


def _other(expected: tuple[int, ...], found: tuple[int, ...]) -> list[int]:
    """The size of the one axis that differs."""
    sizes = [there for here, there in zip(expected, found, strict=True) if here != there]
    return sizes if len(sizes) == 1 else []


def _misfits(
    target: Target,
    num_classes: int | None,
    options: Mapping[str, Any],
    source: Weights,
    registry: Registry,
) -> tuple[Mismatch, ...] | None:
    """What fits by name and not by shape; None where the number was of no use."""
    deferred, handed = constructed(target, num_classes, options)
    if num_classes is not None and not handed:
        return None
    return matched(deferred.model, source, registry=registry, min_coverage=0.0).mismatched
