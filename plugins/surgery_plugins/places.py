"""Stem and stages from groups of parameters: the addresses that hold a group and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.family import Stages


def gathered(model: nn.Module, groups: Sequence[Sequence[str]], first: str = "") -> Stages:
    """The shortest addresses for each group of parameters.

    Args:
        model: the model.
        groups: names of parameters, in order; what is in none of them is left out.
        first: an address that comes first in its group: the layer that takes the input.

    Example:
        >>> from torch import nn
        >>> from surgery_plugins.places import gathered
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        >>> gathered(model, [["0.weight", "0.bias", "1.weight"], ["1.bias"], ["2.weight"]])
        (('0', '1.weight'), ('1.bias',), ('2.weight',))
    """
    group_of = {name: number for number, names in enumerate(groups) for name in names}
    held: dict[str, set[int | None]] = {}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        for prefix in prefixes(name):
            held.setdefault(prefix, set()).add(group_of.get(name))
    stages: list[dict[str, None]] = [{} for _ in groups]
    for name in names:
        number = group_of.get(name)
        if number is not None:
            stages[number][next(p for p in prefixes(name) if held[p] == {number})] = None
    ordered = (sorted(stage, key=lambda a: not f"{first}.".startswith(f"{a}.")) for stage in stages)
    return tuple(tuple(stage) for stage in ordered if stage)


def prefixes(address: str) -> list[str]:
    """An address and all that it lies in, the outermost first."""
    parts = address.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
