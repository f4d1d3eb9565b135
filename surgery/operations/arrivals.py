"""Tensors that are about to arrive in a model: which values each of its tensors gets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.graph.skeleton import is_floating
from surgery.operations.content import Content, region
from surgery.operations.donors import Donor, Gift, check_readable, unreadable
from surgery.operations.mapping import Pair
from surgery.weights.memory import identity
from surgery.weights.policies import check_policies
from surgery.weights.verdicts import Mismatch, Policy


@dataclass(frozen=True, eq=False)
class Arrival:
    """What one tensor of the recipient gets.

    Attributes:
        entry: the tensor that is there.
        addresses: every address that sees the change: of the tensor, and of any other tensor
            that is the very same memory.
        gift: what it gets.
        content: its values, brought to the recipient's shape.
        adapted: whether they were made for the recipient's shape.
    """

    entry: tree.Entry
    addresses: tuple[str, ...]
    gift: Gift
    content: Content
    adapted: bool = False

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Everything that arrives, and what was left out for its shape."""

    all: tuple[Arrival, ...]
    skipped: tuple[Mismatch, ...]


Adapt: TypeAlias = Callable[[Mismatch, torch.Tensor, torch.Tensor], torch.Tensor]


def arrivals_of(
    donor: Donor,
    recipient: nn.Module,
    pairs: Iterable[Pair],
    policy: Callable[[str], Policy],
    adapt: Adapt | None = None,
    index: tree.Index | None = None,
) -> Arrivals:
    """Bring the tensors of a donor to those of a recipient.

    Args:
        donor: what they are taken from.
        recipient: the model that gets them.
        pairs: their addresses.
        policy: what to do where shapes differ, by address in the recipient.
        adapt: what ``"adapt"`` makes of a tensor of another shape: from where it goes, and copies
            of the donor's and of the recipient's tensor.
        index: of the recipient, where it is at hand.

    Raises:
        PlanError: two different tensors for one place, shapes that differ, or no values.
        ArgumentError: a policy that makes nothing usable.
    """
    index = tree.index(recipient) if index is None else index
    places = {a: entry for entry in index.tensors.values() for a in entry.addresses}
    same: dict[object, list[tree.Entry]] = {}
    known: dict[int, object] = {}
    for number, entry in index.tensors.items():
        known[number] = identity(entry.tensor)
        same.setdefault(known[number], []).append(entry)
    wanted: dict[object, list[tuple[str, Gift]]] = {}
    for pair in pairs:
        key = known[id(places[pair.recipient].tensor)]
        wanted.setdefault(key, []).append((pair.recipient, donor.tensors[pair.donor]))
    found: list[Arrival] = []
    mismatched: list[Mismatch] = []
    for key, gifts in wanted.items():
        _check_one(gifts)
        (address, gift), entries = gifts[0], same[key]
        addresses = tuple(dict.fromkeys(a for entry in entries for a in entry.addresses))
        content, shape = gift.content, tuple(entries[0].tensor.shape)
        if gift.shape != shape:
            mismatch = Mismatch(address, gift.address, shape, gift.shape, policy(address))
            made = _fitted(mismatch, gift, donor, entries[0].tensor, adapt)
            if made is None:
                mismatched.append(mismatch)
                continue
            content = made
        adapted = content is not gift.content
        found.append(Arrival(entries[0], addresses, gift, content, adapted))
    check_policies(mismatched)
    return Arrivals(tuple(found), tuple(mismatched))


def _check_one(gifts: list[tuple[str, Gift]]) -> None:
    """Refuse two different tensors for one tensor of the recipient."""
    (first, gift), *others = gifts
    for address, other in others:
        if other.address in gift.addresses:
            continue
        same = other.shape == gift.shape and other.dtype == gift.dtype
        if same and torch.equal(other.content.read(), gift.content.read()):
            continue
        tied = first != address
        raise PlanError(
            "two different tensors of the donor go to one tensor of the recipient",
            where=f"{first} = {address}" if tied else address,
            expected="one tensor, or equal values",
            found=f"{gift.address} and {other.address}",
            fix=f"leave {other.address!r} out of the mapping"
            + (", or untie the two in the recipient first" if tied else ""),
        )


def _fitted(
    mismatch: Mismatch, gift: Gift, donor: Donor, here: torch.Tensor, adapt: Adapt | None
) -> Content | None:
    """What a policy makes of a tensor of another shape; None where it stays out."""
    policy = mismatch.policy
    if policy == "adapt" and adapt is None:
        raise ArgumentError(
            "transplant does not know how this tensor would be adapted",
            where=f"on_mismatch at {mismatch.key}",
            expected=str(mismatch.expected),
            found=str(mismatch.found),
            fix="on_mismatch=lambda address, theirs, ours: theirs[: len(ours)]",
        )
    how: Callable[..., object] | None = policy if callable(policy) else None
    if policy == "adapt" and adapt is not None:
        how = functools.partial(adapt, mismatch)
    elif how is not None:
        how = functools.partial(how, mismatch.key)
    if how is None:
        return None
    check_readable(gift, donor)
    with torch.no_grad():
        made = how(gift.content.read().clone(), here.detach().clone())
    if made is None:
        return None
    if not isinstance(made, torch.Tensor) or made.shape != here.shape or unreadable(made):
        raise ArgumentError(
            "what on_mismatch made does not fit the recipient",
            where=mismatch.key,
            expected=f"a tensor of shape {mismatch.expected}, or None to skip it",
            found=f"a tensor of shape {tuple(made.shape)}"
            if isinstance(made, torch.Tensor)
            else repr(made),
            fix="on_mismatch=lambda address, theirs, ours: theirs[: len(ours)]",
        )
    values = made.detach().clone()
    return Content(lambda: values)


def check_memory(index: tree.Index, arrivals: Collection[Arrival]) -> None:
    """Refuse writes that would reach a tensor that nobody named, or one that is still to be read.

    Raises:
        PlanError: memory is shared in part, or a donor's tensor is overwritten by another.
    """
    written = {id(each.entry.tensor): each for each in arrivals}
    for each in arrivals:
        if id(each.gift.tensor) in written and each.gift.tensor is not each.entry.tensor:
            raise PlanError(
                "this tensor is read and written in one transplant",
                where=each.gift.address,
                expected="parts of the model apart from each other",
                found=f"it goes to {each.address}, and gets values itself",
                fix="surgery.transplant(copy.deepcopy(model), model, mapping)",
            )
    sources = {
        id(each.gift.tensor): (f"{each.gift.address} (which is read)", each.gift.tensor)
        for each in arrivals
        if each.gift.tensor is not None
    }
    ours = {number: (entry.address, entry.tensor) for number, entry in index.tensors.items()}
    for one, other, name in _overlaps(written, sources | ours):
        if identity(one.entry.tensor) == identity(other) and (
            name in one.addresses or other is one.gift.tensor
        ):
            continue
        raise PlanError(
            "this tensor shares memory with another, and writing one would change the other",
            where=f"{one.address}, {name}",
            expected="memory of its own",
            found=f"{tuple(one.entry.tensor.shape)} and {tuple(other.shape)} in the same memory",
            fix="give one memory of its own first: parameter.data = parameter.data.clone()",
        )


def _overlaps(
    written: dict[int, Arrival], others: dict[int, tuple[str, torch.Tensor]]
) -> Iterator[tuple[Arrival, torch.Tensor, str]]:
    """Tensors that are written with any other that lies in the same memory."""
    spans = []
    for key, (name, tensor) in others.items():
        where = None if key in written else region(tensor)
        if where is not None:
            spans.append((str(where[0]), where[1], where[2], key, name, tensor))
    for key, each in written.items():
        where = region(each.entry.tensor)
        if where is not None:
            name, tensor = each.address, each.entry.tensor
            spans.append((str(where[0]), where[1], where[2], key, name, tensor))
    spans.sort(key=lambda span: span[:3])
    # Those that began and have not ended; nearly always one.
    open_: list[tuple[str, int, int, int, str, torch.Tensor]] = []
    for span in spans:
        open_ = [s for s in open_ if s[0] == span[0] and s[2] > span[1]]
        for other in open_:
            for one, two in ((span, other), (other, span)):
                if one[3] in written and two[3] != one[3]:
                    yield written[one[3]], two[5], two[4]
        open_.append(span)


def check_writable(arrival: Arrival, donor: Donor) -> None:
    """Refuse tensors that plain values cannot be copied into, or out of.

    Raises:
        PlanError: on meta, quantised, sparse, of a class of its own, or of a dtype of another
            sort.
    """
    if not arrival.adapted:
        check_readable(arrival.gift, donor)
    check_plain(arrival.entry.tensor, arrival.address)
    theirs, ours = arrival.gift.dtype, arrival.entry.tensor.dtype
    kinds = [_kind(dtype) for dtype in (theirs, ours)]
    if kinds[0] > kinds[1]:
        raise PlanError(
            "the recipient's dtype cannot hold such numbers",
            where=arrival.address,
            expected=f"{ours}, or a dtype that it can hold",
            found=f"{theirs} ({arrival.gift.address} of {donor.title})",
            fix=f"leave {arrival.gift.address!r} out, or make the recipient's tensor {theirs}",
        )


def check_plain(tensor: torch.Tensor, address: str) -> None:
    """Refuse tensors of the recipient that plain values cannot be copied into.

    Raises:
        PlanError: on meta, quantised, sparse, or of a class of its own.
    """
    what = unreadable(tensor)
    if what is not None:
        raise PlanError(
            f"the recipient's tensor {what[0]}, and values cannot be written into it",
            where=address,
            expected="a plain tensor with memory",
            found=what[1],
            fix="recipient.to_empty(device='cpu') first" if tensor.is_meta else what[2],
        )


def _kind(dtype: torch.dtype) -> int:
    """Booleans, integers, fractions, complex numbers: each holds those before it."""
    if is_floating(dtype):
        return 3 if dtype.is_complex else 2
    return 0 if dtype == torch.bool else 1


def lossy(arrival: Arrival) -> str | None:
    """What a conversion to the recipient's dtype loses, in words; None where it is exact.

    Raises:
        PlanError: a value is too large for it.
    """
    changed = rounded(arrival)
    if not changed:
        return None
    theirs, tensor = arrival.gift.dtype, arrival.entry.tensor
    count = f"{changed:,} of {tensor.numel():,} values"
    return f"{arrival.address}: {theirs} -> {tensor.dtype} rounds {count}"


def rounded(arrival: Arrival) -> int:
    """How many values a conversion to the recipient's dtype changes.

    Raises:
        PlanError: a value is too large for it.
    """
    theirs, ours = arrival.gift.dtype, arrival.entry.tensor.dtype
    if torch.promote_types(theirs, ours) == ours:
        return 0
    values = arrival.content.read()
    moved = values.to(ours)
    back = moved.to(values.dtype)
    changed = int((~torch.isclose(back, values, rtol=0, atol=0, equal_nan=True)).sum())
    small = ours if ours.is_floating_point or ours.is_complex else None
    too_large = torch.isfinite(values) & ~torch.isfinite(moved) if small else back != values
    if bool(too_large.any()):
        raise PlanError(
            f"{int(too_large.sum()):,} values are too large for the recipient's dtype",
            where=arrival.address,
            expected=f"values that {ours} can hold",
            found=f"up to {values.abs().max().item():.4g} in {theirs}",
            fix=f"recipient.to({theirs}), or leave {arrival.gift.address!r} out",
        )
    return changed
