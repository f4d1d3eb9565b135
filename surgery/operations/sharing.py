"""Tensors that one of two models ties and the other does not."""

from __future__ import annotations

from collections.abc import Iterator

from surgery import tree
from surgery.errors import PlanError
from surgery.operations.correspondence import Correspondence, Form


def check_ties(found: Correspondence) -> None:
    """Refuse a recipient that has one tensor where the donor has several.

    Args:
        found: what the two have in common.

    Raises:
        PlanError: it has; which of them it is to get, nothing says.
    """
    for address, theirs in found.torn.items():
        ours = _names(found.recipient, address)
        raise PlanError(
            "the recipient ties what the donor has apart: one tensor cannot hold two",
            where=f"{' = '.join(ours)} of {found.recipient.title}",
            expected="one tensor in the donor too, or two in the recipient",
            found=f"{' and '.join(name or 'zeros' for name in theirs)} of {found.donor.title}, "
            "each a tensor of its own",
            fix=_remedy(ours, theirs),
        )


def _remedy(ours: list[str], theirs: tuple[str, ...]) -> str:
    """How to tie in the donor, or to untie in the recipient, as code."""
    told = []
    if len(theirs) > 1 and all(theirs):
        told.append(f"{_at('donor', theirs[1])} = {_at('donor', theirs[0])} if they are equal")
    if len(ours) > 1:
        clone = f"torch.nn.Parameter({_at('recipient', ours[0])}.detach().clone())"
        told.append(f"{_at('recipient', ours[1])} = {clone}")
    return ", or ".join(told) or "surgery.align(donor, recipient) shows what was aligned"


def _at(model: str, address: str) -> str:
    owner, name = tree.split(address)
    return f"{model}.get_submodule({owner!r}).{name}" if owner else f"{model}.{name}"


def _names(form: Form, address: str) -> list[str]:
    found = [name for name, first in form.names.items() if first == address]
    return sorted(found, key=lambda name: name != address)


def apart(found: Correspondence) -> Iterator[str]:
    """Sentences on tensors that are one in the donor and several in the recipient.

    Args:
        found: what the two have in common.
    """
    places: dict[object, dict[str, None]] = {}
    for address, pairs in found.parts.items():
        for pair in pairs:
            if pair.donor:
                places.setdefault(pair.theirs, {})[address] = None
    told = dict.fromkeys(
        (pair.donor, tuple(places[pair.theirs]))
        for pair in found.pairs
        if len(places.get(pair.theirs, ())) > 1
    )
    for donor, addresses in told:
        names = " = ".join(_names(found.donor, donor))
        yield (
            f"{' and '.join(addresses)} get the same values, {names} of the donor: they are not "
            "tied in the recipient, and training moves them apart"
        )
