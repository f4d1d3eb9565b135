"""Which tensor of a donor goes to which of a recipient, and which layers are compared for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError, ArgumentError, PlanError
from surgery.operations.differences import Difference, differences_of
from surgery.operations.donors import Donor
from surgery.operations.mapping import Pair, closest, pairs_of
from surgery.weights.verdicts import is_counter


@dataclass(frozen=True)
class Routes:
    """What goes where.

    Attributes:
        tensors: pairs of tensors.
        modules: pairs of modules that must be the same layer for that.
        gaps: sentences about what one side has and the other has not.
    """

    tensors: tuple[Pair, ...]
    modules: tuple[Pair, ...]
    gaps: tuple[str, ...]


def routes_of(donor: Donor, recipient: nn.Module, mapping: Mapping[str, str] | None) -> Routes:
    """Follow a mapping, or find the addresses that both models have.

    Args:
        donor: what layers are taken from.
        recipient: the model that gets them.
        mapping: patterns; None for what both have.

    Raises:
        AddressError: something fits nothing, or the models have no address in common.
        ArgumentError: a module is to become a tensor, or the other way round.
    """
    index = tree.index(recipient)
    ours = _Side(
        {a for entry in index.of_kind("parameter", "buffer") for a in entry.addresses},
        {a for _, addresses in index.modules.values() for a in addresses},
    )
    theirs = _Side(donor.tensors, donor.modules)
    if mapping is None:
        return _in_common(donor, theirs, ours)
    pairs, homeless = pairs_of(mapping, theirs.all, ours.all, donor.title)
    return _mapped(donor, theirs, ours, pairs, homeless)


class _Side:
    """The addresses of one model, and what lies inside each module."""

    def __init__(self, tensors: Collection[str], modules: Collection[str]) -> None:
        self.tensors = frozenset(tensors)
        self.modules = frozenset(modules)
        self.all = [*modules, *tensors]
        self._inside: dict[str, list[str]] = {}
        self._children: dict[str, dict[str, bool]] = {}
        for address in self.all:
            owner, name = tree.split(address)
            if address:
                self._children.setdefault(owner, {})[name] = address in self.tensors
            while address:
                address = tree.split(address)[0]
                self._inside.setdefault(address, []).append(tree.join(owner, name))

    def inside(self, module: str) -> dict[str, bool]:
        """By address from the module on: whether it is a tensor."""
        skip = len(module) + 1 if module else 0
        return {a[skip:]: a in self.tensors for a in self._inside.get(module, ()) if a}

    def children(self, module: str) -> Mapping[str, bool]:
        """By name of what a module holds itself: whether it is a tensor."""
        return self._children.get(module, {})


def _in_common(donor: Donor, theirs: _Side, ours: _Side) -> Routes:
    shared = [address for address in donor.tensors if address in ours.tensors]
    if not shared:
        first = next(iter(donor.tensors), "")
        close = closest(first, ours.tensors)
        raise AddressError(
            "the donor and the recipient have no address in common",
            where=donor.title,
            expected=f"the closest to {first!r}: {', '.join(close)}" if close else "one at least",
            found=f"{len(theirs.tensors)} tensors against {len(ours.tensors)}",
            fix="surgery.transplant(donor, recipient, {'features.0': 'stem'})",
        )
    owners = {tree.split(address)[0] for address in shared}
    above = {"", *(a[:place] for a in owners for place in range(len(a)) if a[place] == ".")}
    modules = [
        Pair(address, address, False)
        for address in donor.modules
        if address in ours.modules
        and (
            address in owners
            or address in above
            or (
                tree.split(address)[0] in above
                and not ours.children(address)
                and not theirs.children(address)
                and _alike(theirs, ours, tree.split(address)[0])
            )
        )
    ]
    gaps = [
        sentence
        for owner in owners
        for sentence in _gaps(donor, _direct(theirs, owner), _direct(ours, owner), owner, owner)
    ]
    tensors = tuple(Pair(address, address, False) for address in shared)
    return Routes(tensors, tuple(modules), tuple(dict.fromkeys(gaps)))


def _alike(theirs: _Side, ours: _Side, module: str) -> bool:
    return theirs.children(module).keys() == ours.children(module).keys()


def _direct(side: _Side, module: str) -> dict[str, bool]:
    return {name: True for name, is_tensor in side.children(module).items() if is_tensor}


def _mapped(
    donor: Donor, theirs: _Side, ours: _Side, pairs: Iterable[Pair], homeless: Iterable[Pair]
) -> Routes:
    tensors: dict[tuple[str, str], Pair] = {}
    modules: dict[tuple[str, str], Pair] = {}
    gaps: list[str] = []
    for pair in homeless:
        gaps.append(_gap(pair.donor, pair.recipient, "recipient"))
    for pair in pairs:
        if (pair.donor in theirs.tensors) is not (pair.recipient in ours.tensors):
            raise _unlike(pair, pair.donor in theirs.tensors)
        if pair.donor in theirs.tensors:
            _add(tensors, pair)
            owners = tree.split(pair.donor)[0], tree.split(pair.recipient)[0]
            _add(modules, Pair(*owners, pair.named))
            continue
        _add(modules, pair)
        there, here = theirs.inside(pair.donor), ours.inside(pair.recipient)
        gaps += _gaps(donor, there, here, pair.donor, pair.recipient)
        for name, is_tensor in there.items():
            if here.get(name) is is_tensor:
                inner = (tree.join(pair.donor, name), tree.join(pair.recipient, name))
                _add(tensors if is_tensor else modules, Pair(*inner, pair.named))
    return Routes(tuple(tensors.values()), tuple(modules.values()), tuple(dict.fromkeys(gaps)))


def _add(found: dict[tuple[str, str], Pair], pair: Pair) -> None:
    key = (pair.donor, pair.recipient)
    if key not in found or pair.named:
        found[key] = pair


def _gaps(
    donor: Donor, theirs: Mapping[str, bool], ours: Mapping[str, bool], there: str, here: str
) -> Iterator[str]:
    """What lies inside one of two modules only. A checkpoint has no layers without tensors."""
    for name, is_tensor in theirs.items():
        if ours.get(name) is not is_tensor:
            yield _gap(tree.join(there, name), tree.join(here, name), "recipient")
    for name, is_tensor in ours.items():
        if theirs.get(name) is is_tensor:
            continue
        if donor.model is not None or (is_tensor and not is_counter(name)):
            yield _gap(tree.join(there, name), tree.join(here, name), "donor")


def _gap(there: str, here: str, lacking: str) -> str:
    if lacking == "donor":
        return f"{here} of the recipient: the donor has no {there}"
    return f"{there} of the donor: the recipient has no {here}"


def _unlike(pair: Pair, tensor: bool) -> ArgumentError:
    sorts = ("tensor", "module") if tensor else ("module", "tensor")
    return ArgumentError(
        "a module goes to a module and a tensor to a tensor",
        where=f"{pair.donor} -> {pair.recipient}",
        expected=f"the address of a {sorts[0]} in the recipient",
        found=f"a {sorts[1]}",
        fix=f"mapping={{{pair.donor + '.weight'!r}: {pair.recipient!r}}}"
        if not tensor
        else f"mapping={{{pair.donor!r}: {pair.recipient + '.weight'!r}}}",
    )


def compare(
    donor: Donor, recipient: nn.Module, routes: Routes, adapted: Collection[str]
) -> tuple[list[Difference], list[str]]:
    """What layers that are to be the same differ in.

    Args:
        donor: what layers are taken from.
        recipient: the model that gets them.
        routes: what goes where.
        adapted: addresses of modules in the recipient that got tensors of another shape: their
            sizes differ on purpose.

    Returns:
        The differences, and notes on those that say nothing about a layer.

    Raises:
        PlanError: a layer keeps its weights packed, where they are no tensors.
    """
    found: list[Difference] = []
    notes: list[str] = []
    owners = {tree.split(pair.recipient)[0] for pair in routes.tensors}
    for pair in routes.modules:
        theirs, ours = donor.modules[pair.donor], tree.get_module(recipient, pair.recipient)
        _check_unpacked(ours, pair.recipient)
        if theirs is None:
            continue
        _check_unpacked(theirs, pair.donor)
        holds = not pair.named and pair.recipient not in owners and bool(ours._modules)
        for each in differences_of(theirs, ours, pair.donor, pair.recipient):
            if pair.recipient in adapted or (holds and each.what == "class"):
                notes.append(str(each))
            else:
                found.append(each)
    return found, notes


def _check_unpacked(module: nn.Module, address: str) -> None:
    packed = [name for name, value in vars(module).items() if isinstance(value, torch.ScriptObject)]
    if packed:
        raise PlanError(
            "this layer keeps its weights packed, and not as tensors that could be copied",
            where=address or "(the model itself)",
            expected="a layer with parameters",
            found=f"{tree.class_name(type(module))}.{packed[0]}",
            fix=f"surgery.replace(recipient, {{{address!r}: module}})",
        )
