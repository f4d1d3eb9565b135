"""A checkpoint of one implementation, opened as one of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from surgery.errors import CoverageError
from surgery.operations.correspondence import Correspondence
from surgery.weights.value import TensorInfo, Weights

_SHOWN = 6


def converted(weights: Weights, found: Correspondence, least: float = 0.0) -> Weights:
    """A checkpoint of the donor in the recipient's names and shapes; nothing is read.

    Args:
        weights: the donor's, under its own names.
        found: which tensor of the donor is which of the recipient.
        least: the share of tensors, 0 to 1, that must have a counterpart.

    Returns:
        The tensors of the recipient that the donor fills, each assembled when it is read.

    Raises:
        CoverageError: too little of the two is the same.
        AddressError: the checkpoint lacks a tensor that belongs into the recipient.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> from surgery.weights import read
        >>> one, other = nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)
        >>> found = surgery.align(one, other, example=torch.zeros(1, 3))
        >>> list(converted(read(one.state_dict()), found).tensors)
        ['weight', 'bias']
    """
    check_coverage(found, least)
    store = _Assembled(found, weights)
    given = found.given(weights.tensors)
    left = [name for name in weights.tensors if found.donor.aliases.get(name) not in found.read]
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    note = f"no place in {found.recipient.title}: {', '.join(left[:_SHOWN])}{more}"
    return replace(
        weights,
        origin=f"{weights.origin}, as {found.recipient.title}",
        tensors={address: store.info(address) for address in given},
        metadata={},
        notes=(*weights.notes, *([note] if left else [])),
        _store=store,
        _mentioned={},
    )


def check_coverage(found: Correspondence, least: float) -> None:
    """Refuse a correspondence of too little.

    Raises:
        CoverageError: fewer tensors have a counterpart.
    """
    if found.coverage >= least:
        return
    left = [*found.donor_only[:4], *found.recipient_only[:4]]
    raise CoverageError(
        f"only {found.coverage:.0%} of the tensors have a counterpart",
        where=f"{found.donor.title}, {found.recipient.title}",
        expected=f"at least {least:.0%}",
        found="\n".join(map(str, left)),
        fix=f"min_coverage={found.coverage:.2f}, or a recipient of the donor's depth and width",
    )


@dataclass(frozen=True, eq=False)
class _Assembled:
    """The store of converted weights."""

    found: Correspondence
    weights: Weights

    def info(self, address: str) -> TensorInfo:
        """What is known of one of the recipient's tensors."""
        shape = self.found.recipient.shapes[address]
        made = self.found.assemble(address, self._blank)
        return TensorInfo(shape, made.dtype, made.numel() * made.element_size())

    def read(self, name: str) -> torch.Tensor:
        """One tensor of the recipient."""
        return self.found.assemble(name, self._read)

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Several, in the order of the recipient."""
        return ((name, self.read(name)) for name in self.found.parts if name in names)

    def _read(self, address: str) -> torch.Tensor:
        return self.weights.read(self._name(address))

    def _blank(self, address: str) -> torch.Tensor:
        info = self.weights.tensors[self._name(address)]
        return torch.empty(info.shape, dtype=info.dtype, device="meta")

    def _name(self, address: str) -> str:
        """What the checkpoint calls a tensor of the donor."""
        names = (n for n, first in self.found.donor.aliases.items() if first == address)
        return next(name for name in names if name in self.weights.tensors)
