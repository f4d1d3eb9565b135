"""A checkpoint of one implementation, opened as one of another."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import AddressError, CoverageError, PlanError
from surgery.operations.correspondence import Correspondence
from surgery.operations.sharing import apart, check_ties
from surgery.operations.spelled import spelled
from surgery.patterns import listed
from surgery.weights.policies import resolve
from surgery.weights.renaming import left_out
from surgery.weights.value import TensorInfo, Weights
from surgery.weights.verdicts import Matching

_SHOWN = 6


def by_correspondence(
    model: nn.Module,
    weights: Weights,
    found: Correspondence,
    *,
    drop: object = (),
    on_mismatch: object = "skip",
    min_coverage: float = 0.0,
) -> tuple[Weights, tuple[Any, ...]]:
    """A checkpoint of the donor as one of a model, and what is left to drop of the model's.

    Args:
        model: what it is for, out of its wrappers.
        weights: the donor's.
        found: which tensor of the donor is which of the model's.
        drop: patterns of names of either side.
        on_mismatch: what becomes of tensors of another shape.
        min_coverage: the share of tensors, 0 to 1, that must have a counterpart.

    Raises:
        PlanError: the model is not the one that was aligned, and as ``converted``.
        CoverageError: too little of the two is the same.
        AddressError: the checkpoint lacks a tensor that belongs into the model.
        ArgumentError: a pattern or policy that is none.
    """
    names = {address: (address,) for address in found.recipient.names}
    kept, ours = left_out(drop, names)
    policy = resolve(on_mismatch, found.recipient.names)
    excused = kept | {address for address in found.parts if policy(address) != "skip"}
    _, theirs = left_out(drop, {name: (name,) for name in weights.tensors})
    told = check_recipient(found, model, excused)
    made = converted(weights, found, min_coverage, drop)
    patterns = enumerate(listed(drop, "drop"))
    # What names tensors of the checkpoint alone is done with; the rest is the loading's to judge.
    left = tuple(each for place, each in patterns if place in ours or place not in theirs)
    return (replace(made, notes=(*made.notes, told)) if told else made), left


def converted(
    weights: Weights, found: Correspondence, least: float = 0.0, drop: object = ()
) -> Weights:
    """A checkpoint of the donor in the recipient's names and shapes; nothing is read.

    Args:
        weights: the donor's, under its own names or with prefixes of wrappers before them.
        found: which tensor of the donor is which of the recipient.
        least: the share of tensors, 0 to 1, that must have a counterpart.
        drop: patterns of the checkpoint's names to leave out.

    Returns:
        The tensors of the recipient that the donor fills, each assembled when it is read.

    Raises:
        CoverageError: too little of the two is the same.
        AddressError: the checkpoint lacks a tensor that belongs into the recipient.
        PlanError: the recipient ties what the donor has apart, two parts of the checkpoint fit,
            or two different tensors are one in the donor.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> from surgery.weights import read
        >>> one, other = nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)
        >>> found = surgery.align(one, other, example=torch.zeros(1, 3))
        >>> wrapped = {f"module.{name}": each for name, each in one.state_dict().items()}
        >>> list(converted(read(wrapped), found).tensors)
        ['weight', 'bias']
    """
    check_ties(found)
    check_coverage(found, least)
    dropped, _ = left_out(drop, {name: (name,) for name in weights.tensors})
    kept = {name: info for name, info in weights.tensors.items() if name not in dropped}
    gone = found.sources({name: weights.tensors[name] for name in dropped}) if dropped else {}
    try:
        matching = found.matching(kept)
        names = spelled(found.donor.names, matching)
        given = found.given(names, gone)
    except (AddressError, PlanError) as error:
        raise _own(weights, found) or error from None
    check_rivals(matching, weights)
    store = _Assembled(found, weights, names)
    read = {name for first, name in names.items() if first in found.read}
    left = [name for name in kept if name not in read and name not in matching.tied_sources]
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    told = [f"no place in {found.recipient.title}: {', '.join(left[:_SHOWN])}{more}"]
    return replace(
        weights,
        origin=f"{weights.origin}, as {found.recipient.title}",
        tensors={address: store.info(address) for address in given},
        metadata={},
        notes=(
            *weights.notes,
            *([matching.undone] if matching.undone else []),
            *(told if left else []),
            *apart(found),
        ),
        _store=store,
        _mentioned={},
    )


def _own(weights: Weights, found: Correspondence) -> AddressError | None:
    """What to say of a checkpoint of the recipient itself; None for any other."""
    ours = found.inverse()
    try:
        names = ours.sources(weights.tensors)
    except PlanError:
        return None
    shapes = {first: weights.tensors[name].shape for first, name in names.items()}
    if any(shapes.get(first) != ours.donor.shapes[first] for first in ours.read):
        return None
    return AddressError(
        "the checkpoint is one of the recipient's own, which needs no correspondence",
        where=weights.origin,
        expected=f"a checkpoint of {found.donor.title}",
        found=f"all tensors of {found.recipient.title}",
        fix="surgery.load_weights(model, checkpoint), or rename=correspondence.inverse() into "
        "the other model",
    )


def check_recipient(found: Correspondence, model: nn.Module, excused: Container[str]) -> str:
    """Refuse a model that is not the one a correspondence was made for.

    Args:
        found: the correspondence.
        model: what is loaded into, out of its wrappers.
        excused: addresses of tensors of another shape that the caller has said something of.

    Returns:
        A sentence where it is of another class and has the same tensors; else empty.

    Raises:
        PlanError: a tensor that would be filled is not there, or has another shape.
    """
    entries = tree.index(model).of_kind("parameter", "buffer")
    shapes = {address: tuple(e.tensor.shape) for e in entries for address in e.addresses}
    wrong = [
        address
        for address in found.parts
        if shapes.get(address) != found.recipient.shapes[address] and address not in excused
    ]
    title = type(model).__name__
    if not wrong:
        same = title == found.recipient.title
        return "" if same else f"{title} has the tensors of {found.recipient.title}"
    turned = all(shapes.get(a) == found.donor.shapes[a] for a in found.inverse().parts)
    lines = [
        f"{address} {shapes.get(address, '(no such tensor)')}, and "
        f"{found.recipient.shapes[address]} in {found.recipient.title}"
        for address in wrong[:_SHOWN]
    ]
    lines += [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    fix = "rename=surgery.align(donor, model)"
    if 2 * len(wrong) < len(found.parts):
        fix += f", or drop={wrong[0]!r} to leave it as it is"
    raise PlanError(
        "the correspondence was made for another model: "
        f"{len(wrong)} of {len(found.parts)} tensors that it fills are not there with their shape",
        where=title,
        expected=f"the tensors of {found.recipient.title} that was aligned",
        found="\n".join(lines),
        fix="rename=correspondence.inverse()" if turned else fix,
    )


def check_rivals(matching: Matching, weights: Weights) -> None:
    """Refuse two different tensors of a source for one tensor of the model.

    Raises:
        PlanError: their values differ.
    """
    for name in matching.rivals:
        other = matching.tied_sources[name]
        if not _same_bytes(weights.read(name), weights.read(other)):
            raise PlanError(
                "two different tensors of the source go to one tensor of the model, which is tied",
                where=name,
                expected=f"the values of {other!r}",
                found="other values",
                fix=f"drop={name!r}, or untie the two in the model first",
            )


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


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
    names: Mapping[str, str]

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
        return self.weights.read(self.names[address])

    def _blank(self, address: str) -> torch.Tensor:
        info = self.weights.tensors[self.names[address]]
        return torch.empty(info.shape, dtype=info.dtype, device="meta")
