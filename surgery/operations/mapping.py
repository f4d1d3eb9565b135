"""From addresses of one model to addresses of another: literal ones, patterns with captures."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from surgery.errors import AddressError, ArgumentError

_WILD = re.compile(r"\*\*|\*")
_EXAMPLE = "surgery.transplant(donor, recipient, {'features.0': 'stem', 'blocks.*': 'encoder.*'})"
_SHOWN = 6


@dataclass(frozen=True)
class Pair:
    """One address of the donor and the address in the recipient that it goes to.

    Attributes:
        donor: the donor's address.
        recipient: the recipient's.
        named: it was named, alone or among its neighbours (``blocks.*``), and not swept up with
            everything else (``**``).
    """

    donor: str
    recipient: str
    named: bool = True


def pairs_of(
    mapping: Mapping[str, str],
    donor: Collection[str],
    recipient: Collection[str],
    within: str = "donor",
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Which address goes where.

    ``*`` stands for one part of an address or a piece of one, ``**`` for any number of parts;
    what they stood for fills the wildcards on the other side, in order.

    Args:
        mapping: patterns of the donor, each with one of the recipient.
        donor: the addresses that the donor has.
        recipient: those that the recipient has.
        within: what the donor is called in errors.

    Returns:
        The pairs, and those whose place the recipient does not have.

    Raises:
        ArgumentError: no mapping, or wildcards that do not correspond.
        AddressError: a pattern that fits nothing on one side, with the closest addresses.

    Example:
        >>> found, _ = pairs_of({"blocks.*": "body.*.0"}, ["blocks.3", "head"], ["body.3.0"])
        >>> [(pair.donor, pair.recipient) for pair in found]
        [('blocks.3', 'body.3.0')]
    """
    _check(mapping)
    found: dict[tuple[str, str], Pair] = {}
    homeless: dict[tuple[str, str], Pair] = {}
    known = frozenset(recipient)
    for pattern, target in mapping.items():
        sent = list(_sent(pattern, target, donor))
        if not sent:
            raise _nothing_fits(pattern, donor, within, "mapping")
        arrived = [pair for pair in sent if pair.recipient in known]
        if not arrived:
            raise _nothing_fits(sent[0].recipient, recipient, "recipient", f"mapping[{pattern!r}]")
        for pair in sent:
            where = found if pair.recipient in known else homeless
            where.setdefault((pair.donor, pair.recipient), pair)
    return tuple(found.values()), tuple(homeless.values())


def _check(mapping: object) -> None:
    if not isinstance(mapping, Mapping) or not mapping:
        raise ArgumentError(
            "a mapping says which address of the donor goes to which of the recipient",
            where="mapping",
            expected="{'address or pattern': 'address or pattern'}, or None",
            found=repr(mapping),
            fix=_EXAMPLE,
        )
    for pattern, target in mapping.items():
        if not isinstance(pattern, str) or not isinstance(target, str):
            raise ArgumentError(
                "an address or a pattern is a str",
                where=f"mapping[{pattern!r}]",
                expected="'address or pattern': 'address or pattern'",
                found=f"{pattern!r}: {target!r}",
                fix=_EXAMPLE,
            )
        if _WILD.findall(pattern) != _WILD.findall(target):
            raise ArgumentError(
                "what a wildcard stands for in the donor fills the same one in the recipient",
                where=f"mapping[{pattern!r}]",
                expected="the same wildcards in the same order on both sides",
                found=f"{pattern!r}: {target!r}",
                fix="mapping={'blocks.*.attn': 'encoder.*.attention'}",
            )


def _sent(pattern: str, target: str, addresses: Iterable[str]) -> Iterable[Pair]:
    if not _WILD.search(pattern):
        return (Pair(pattern, target) for address in addresses if address == pattern)
    fits = _compiled(pattern).fullmatch
    named = "**" not in pattern
    matches = ((address, fits(address)) for address in addresses if address)
    filled = _filler(target)
    return (Pair(address, filled(match), named) for address, match in matches if match)


def _compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression, one group for each wildcard."""
    parts = []
    rest = pattern
    while wild := _WILD.search(rest):
        before, rest = rest[: wild.start()], rest[wild.end() :]
        parts.append(re.escape(before))
        if wild[0] == "*":
            alone = before[-1:] in ("", ".") and rest[:1] in ("", ".")
            parts.append(r"([^.]+)" if alone else r"([^.]*)")
        elif rest.startswith("."):
            # Any number of parts in front of others, none included: their dots go along.
            parts.append(r"((?:[^.]+\.)*)")
            rest = rest[1:]
        else:
            parts.append(r"(.+)")
    return re.compile("".join([*parts, re.escape(rest)]))


def _filler(target: str) -> Callable[[re.Match[str]], str]:
    pieces, wildcards = _WILD.split(target), _WILD.findall(target)

    def filled(match: re.Match[str]) -> str:
        made = pieces[0]
        for wild, group, piece in zip(wildcards, match.groups(), pieces[1:], strict=True):
            parts = group.removesuffix(".")
            if wild == "**" and not parts:
                # None at all: one of the dots around them goes too.
                made, piece = (made, piece[1:]) if piece else (made.removesuffix("."), piece)
            made += parts + piece
        return made

    return filled


def _nothing_fits(pattern: str, addresses: Collection[str], side: str, where: str) -> AddressError:
    close = closest(pattern, addresses)
    return AddressError(
        f"nothing in the {side} has the address {pattern!r}"
        if not _WILD.search(pattern)
        else f"nothing in the {side} fits the pattern {pattern!r}",
        where=where,
        expected=f"the closest: {', '.join(close)}" if close else f"an address of the {side}",
        found=repr(pattern),
        fix=f"did you mean {close[0]!r}?" if close else f"list(surgery.tree.walk({side}))",
    )


def closest(pattern: str, addresses: Collection[str]) -> list[str]:
    """The addresses most like one, or like a pattern, the closest first.

    Example:
        >>> closest("featurs.*", ["features", "features.0", "classifier.0"])
        ['features.0', 'features']
    """
    listed = [address for address in addresses if address]
    return get_close_matches(pattern, listed, n=_SHOWN, cutoff=0.5)
