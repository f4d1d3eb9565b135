"""Where tensors of another shape are to be expected: the heads of a model, and its first layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from surgery import tree
from surgery.claims import claims_of
from surgery.errors import SurgeryError
from surgery.families.applied import stem_for
from surgery.families.registry import Registry
from surgery.findings import Head
from surgery.graph.entrance import find_entrances
from surgery.survey import Survey, survey


@dataclass(frozen=True)
class Ends:
    """The addresses of what follows the classes and of what follows the input.

    Attributes:
        heads: layers, or blocks that end in them.
        inputs: first layers and what else depends on the size of the input.
    """

    heads: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def is_head(self, addresses: Iterable[str]) -> bool:
        """Whether one of these addresses lies in a head."""
        return _within(addresses, self.heads)

    def is_input(self, addresses: Iterable[str]) -> bool:
        """Whether one of these addresses lies where the input comes in."""
        return _within(addresses, self.inputs)


def _within(addresses: Iterable[str], places: Iterable[str]) -> bool:
    known = tuple(places)
    return any(
        place in ("", address) or address.startswith(f"{place}.")
        for address in addresses
        for place in known
    )


def find_ends(model: nn.Module, registry: Registry) -> Ends | None:
    """The ends of a model, as its families claim them or as a recording shows them.

    Args:
        model: any module.
        registry: the plugins to ask.

    Returns:
        The ends; None where no family claims the model and it cannot be recorded.
    """
    index = tree.index(model)
    heads = tuple(claimed.address for claimed in claims_of(index, registry))
    stems: list[str] = []
    for module, addresses in index.modules.values():
        family = registry.claim(module)
        if family is not None:
            inside = stem_for(family, module)
            stems += [tree.join(base, stem) for base in addresses for stem in inside]
    if heads:
        return Ends(heads, tuple(stems))
    known = recorded(model, registry)
    return None if known is None else Ends(_addresses(known.heads), _inputs(known))


def recorded(model: nn.Module, registry: Registry) -> Survey | None:
    """A recording of the model with its heads; None where none can be made."""
    try:
        return survey(model, registry=registry)
    except SurgeryError:
        return None


def _addresses(heads: Sequence[Head]) -> tuple[str, ...]:
    return tuple(address for head in heads for address in head.addresses)


def _inputs(known: Survey) -> tuple[str, ...]:
    return tuple(
        tree.split(address)[0]
        for graph in known.graphs.values()
        for entrance in find_entrances(graph).found
        for address in entrance.weight
    )
