"""What families claim of a model, at full addresses, held against what the graph shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from surgery import tree
from surgery.errors import ClaimContradictedError
from surgery.facts import Fact
from surgery.families.applied import attribute, heads_for, is_headless
from surgery.families.family import Family, HeadClaim, contradicted
from surgery.families.registry import Registry
from surgery.findings import Head
from surgery.owners import Owner

# Roles of layers that make no class output of their own: nobody asks for them by a number of
# classes.
FOLLOWING = frozenset({"coupled", "keypoints", "choice", "span"})

# What those of them do that score something else than classes, in words.
SCORED: Mapping[str, str] = {
    "choice": "scores each choice that it is given",
    "span": "scores where an answer starts and where it ends",
}


@dataclass(frozen=True)
class Claimed:
    """A family's claim on one layer of a model.

    Attributes:
        address: the layer, from the root of the model.
        base: the module that the family claims, of which the layer is a part.
        claim: what it says of the layer.
        family: whose claim it is.
    """

    address: str
    base: str
    claim: HeadClaim
    family: Family

    def covers(self, addresses: Iterable[str]) -> bool:
        """Whether one of these is the claimed layer, or lies inside it."""
        return any(a == self.address or a.startswith(f"{self.address}.") for a in addresses)


def claims_of(index: tree.Index, registry: Registry) -> tuple[Claimed, ...]:
    """Every claim of every family on a part of a model, the root's first."""
    found = []
    for module, addresses in index.modules.values():
        family = registry.claim(module)
        if family is not None:
            for claim in heads_for(family, module):
                for base in addresses:
                    found.append(Claimed(tree.join(base, claim.address), base, claim, family))
    return tuple(found)


def claim_on(claims: Iterable[Claimed], owner: Owner) -> Claimed | None:
    """The first claim that covers a layer."""
    return next((claimed for claimed in claims if claimed.covers(owner.addresses)), None)


def synced_facts(index: tree.Index, registry: Registry) -> Iterator[Fact]:
    """The attributes that families say must equal a number of classes (or of keypoints)."""
    for module, addresses in index.modules.values():
        family = registry.claim(module)
        if family is None:
            continue
        claims = heads_for(family, module)
        for path in (*family.sync, *(path for claim in claims for path in claim.sync)):
            value = attribute(module, path)
            if type(value) is int and value > 0:
                place, rest = _held(index, addresses[0], path)
                yield Fact(place, rest, "count", value)


def _held(index: tree.Index, base: str, path: str) -> tuple[str, str]:
    """The innermost module on a path of attributes, and the rest of the path."""
    names = path.split(".")
    known = {address for _, addresses in index.modules.values() for address in addresses}
    for length in range(len(names) - 1, 0, -1):
        place = tree.join(base, ".".join(names[:length]))
        if place in known:
            return place, ".".join(names[length:])
    return base, path


def checked(
    index: tree.Index, registry: Registry, claims: Sequence[Claimed], heads: Sequence[Head]
) -> list[Head]:
    """Hold the claims of the model's own family against the graph.

    A claim on a layer that was removed (an ``nn.Identity`` in its place) says that there is no
    head; a claim on a layer that holds parameters and makes no output is contradicted. What
    follows other heads learns which.

    Raises:
        ClaimContradictedError: the graph shows something else.
    """
    family = registry.claim(index.root)
    if family is not None and is_headless(family, index.root):
        return []
    own = [claimed for claimed in claims if claimed.base == ""] if family is not None else []
    asked = [c for c in own if c.claim.role != "aux" and _is_there(index, c.address)]
    holding = [c for c in asked if holds_parameters(index, c.address)]
    for claimed in holding:
        if not any(claimed.covers(head.addresses) for head in heads):
            shown = ", ".join(f"{h.address} ({h.num_classes})" for h in heads) or "no head"
            said = ", ".join(f"{c.address} ({c.claim.role})" for c in own)
            raise contradicted(claimed.family, shown, expected=said)
    if asked and not holding:
        return [head for head in heads if head.corroborated]
    followed = [_following(claims, heads, head) for head in heads]
    return [head for head in followed if head is not None]


def _following(claims: Sequence[Claimed], heads: Sequence[Head], head: Head) -> Head | None:
    """The head, with the heads that it follows where it is coupled to some.

    None for a layer that could be coupled and makes the numbers of one class for all of them.
    """
    if head.role != "coupled":
        return head
    here = next(claimed for claimed in claims if claimed.covers(head.addresses))
    leading = [c for c in claims if c.base == here.base and c.claim.role not in FOLLOWING]
    led = [other for other in heads if any(c.covers(other.addresses) for c in leading)]
    odd = [other for other in led if other.num_classes != head.num_classes]
    if odd and head.num_classes == 1:
        return None
    if odd or not led:
        raise _uncoupled(here, head, odd)
    return dataclasses.replace(head, follows=tuple(other.address for other in led))


def _uncoupled(claimed: Claimed, head: Head, odd: Sequence[Head]) -> ClaimContradictedError:
    entries, factor = head.num_classes * head.factor, claimed.claim.factor
    classes = ", ".join(f"{other.address} ({other.num_classes})" for other in odd) or "no head"
    wanted = factor * odd[0].num_classes if odd else factor
    return ClaimContradictedError(
        f"family {claimed.family.name!r} says that {head.address} makes {factor} numbers for each "
        "class, and it does not",
        where=head.address,
        expected=f"{wanted} outputs",
        found=f"{head.address} makes {entries} numbers, and classes are made at {classes}",
        fix=f"put a layer with {wanted} outputs at model.{head.address}, or where the family is "
        "wrong correct its claim",
    )


def _is_there(index: tree.Index, address: str) -> bool:
    return any(address in addresses for _, addresses in index.modules.values())


def holds_parameters(index: tree.Index, address: str) -> bool:
    """Whether there are parameters inside a module; a removed layer has none."""
    return any(
        f"{place}.".startswith(f"{address}.")
        for entry in index.of_kind("parameter")
        for place in entry.addresses
    )
