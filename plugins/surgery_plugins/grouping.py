"""Stages of trunks that are one long list of layers, or whose depth varies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages


def pools(layer: nn.Module) -> bool:
    """Whether a layer pools, by the name of its class."""
    return "Pool" in type(layer).__name__


def halves(layer: nn.Module) -> bool:
    """Whether torchvision says of a block that it begins a coarser scale."""
    return bool(getattr(layer, "_is_cn", False))


def coarsens(layer: nn.Module) -> bool:
    """Whether a child of a backbone begins a stage: a whole one of ResNet, or such a block."""
    return halves(layer) or type(layer).__name__ == "Sequential"


def stem_of(model: nn.Module, address: str) -> tuple[str, ...]:
    """The layer of a backbone that reads the input, with the normalisation behind it.

    Example:
        >>> from torch import nn
        >>> from surgery_plugins.grouping import stem_of
        >>> body = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "layer": nn.Sequential()}
        >>> stem_of(nn.ModuleDict({"backbone": nn.ModuleDict(body)}), "backbone")
        ('backbone.conv', 'backbone.bn')
    """
    first, *others = model.get_submodule(address).named_children()
    norms = takewhile(lambda named: "Norm" in type(named[1]).__name__, others)
    return tuple(f"{address}.{name}" for name, _ in (first, *norms))


def always(layer: nn.Module) -> bool:
    """Each layer on its own."""
    return True


def group(
    model: nn.Module,
    address: str,
    starts: Callable[[nn.Module], bool] = always,
    without: tuple[str, ...] = (),
) -> Stages:
    """The children of a container, in stages; those without parameters are left out.

    Args:
        model: the model.
        address: the container.
        starts: whether a child begins a new stage.
        without: addresses to leave out: the stem and the heads.

    Example:
        >>> from torch import nn
        >>> from surgery_plugins.grouping import group, pools
        >>> trunk = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)]
        >>> model = nn.Sequential(nn.Sequential(*trunk))
        >>> group(model, "0", pools, without=("0.0",))
        (('0.1',), ('0.3',))
    """
    stages: list[list[str]] = [[]]
    for name, child in model.get_submodule(address).named_children():
        if starts(child):
            stages.append([])
        place = f"{address}.{name}"
        if place not in without and next(child.parameters(), None) is not None:
            stages[-1].append(place)
    return tuple(tuple(stage) for stage in stages if stage)
