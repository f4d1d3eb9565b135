"""Which tensor of a source belongs to which of a model, from names, shapes and dtypes alone.

The order in which names are read:

1. The caller's ``rename``, on the source's own keys. It wins: a key it renames to a key of the
   model is that key, whatever else would fit there.
2. A key that the model has under the very same name.
3. Wrappers passed over anywhere in a key, then one prefix taken off the source's keys and one put
   before them: the pair that lets most tensors match by name and shape.
4. The family's dialect, where one lets more tensors match than none does.

``drop`` is understood for a source's key, for the name it was given, and for the model's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import floor
from typing import TYPE_CHECKING

from surgery.errors import ArgumentError, CoverageError, PlanError
from surgery.patterns import listed
from surgery.weights.closest import closest
from surgery.weights.judge import judge
from surgery.weights.names import WRAPPED, Found, Rewriting, find_rewriting, leading, strip
from surgery.weights.policies import resolve
from surgery.weights.renaming import Rename, Rule, applied, compiled, left_out, renamed
from surgery.weights.value import TensorInfo
from surgery.weights.verdicts import Matching, printable

if TYPE_CHECKING:
    from surgery.families.family import Rules


@dataclass(frozen=True)
class _Reading:
    """One way to read the source's names: a dialect (or none) and what stands before it."""

    found: Found
    dialect: str | None = None
    rules: tuple[Rule, ...] = ()
    lead: str = ""

    @property
    def gain(self) -> tuple[int, int]:
        """How much it brings together, by name and shape, then by name and nearly by shape."""
        return self.found.matched, self.found.near

    def told(self, matching: Matching) -> Matching:
        """The matching with what was undone in its names."""
        way = self.found.rewriting
        ignored = way.ignored if self.dialect is None else way.ignored | WRAPPED
        met = {
            part
            for key, name in matching.pairs.items()
            if key != name
            for part in ignored.intersection({*key.split(".")} ^ {*name.split(".")})
        }
        return replace(
            matching,
            ignored=tuple(sorted(met)),
            source_prefix=self.lead + way.source_prefix,
            model_prefix=way.model_prefix,
            dialect=self.dialect,
        )

    def spell(self, name: str) -> str:
        """A name of the source as the dialect's rules make it."""
        if self.dialect is None:
            return name
        # Rules are written for bare names: wrappers would hide the beginning from them.
        return applied(strip(name, WRAPPED).removeprefix(self.lead), self.rules)


def match(
    model: Mapping[str, TensorInfo],
    source: Mapping[str, TensorInfo],
    *,
    dialects: Mapping[str, Rules] | None = None,
    rename: Rename | None = None,
    drop: object = (),
    on_mismatch: object = "skip",
    min_coverage: float = 0.5,
) -> Matching:
    """Give every key of a model and of a source its one verdict. No tensor is read.

    Args:
        model: shape, dtype and aliases by key of the model's state dict.
        source: the same of the source. An alias that is no key of its own (a file may mention a
            tied tensor that it stores once) counts as another name of that tensor.
        dialects: a family's ``renames``.
        rename: the caller's: a mapping from the source's keys to names, pairs of a regular
            expression and a replacement, or a callable from a key to a name or None.
        drop: patterns of keys to leave out, as in ``surgery.freeze``.
        on_mismatch: what to do where only the shape differs: ``"skip"``, ``"error"``,
            ``"adapt"``, a callable, or a mapping from patterns to these. Only noted here.
        min_coverage: the share of tensors, 0 to 1, that must match by name and shape on the
            model's side or on the source's.

    Returns:
        The verdicts, and what was undone in the names.

    Raises:
        CoverageError: too little matches; it says how much and shows the closest names.
        PlanError: two keys of the source lead to one of the model, or two parts of it fit
            equally well.
        ArgumentError: an argument that cannot be right, or a pattern that fits nothing.

    Example:
        >>> import torch
        >>> from surgery.weights.memory import describe
        >>> layer = torch.nn.Linear(3, 2)
        >>> matching = match(describe(layer.state_dict()), describe({
        ...     f"module.{key}": tensor for key, tensor in layer.state_dict().items()}))
        >>> dict(matching.pairs)
        {'weight': 'module.weight', 'bias': 'module.bias'}
    """
    check_share(min_coverage)
    policy = resolve(on_mismatch, model)
    entries, origin = _with_mentioned(source)
    names = renamed(entries, rename)
    before = {key: (key, name or key) for key, name in names.items()}
    fitting, used = left_out(drop, before)
    dropped = fitting | {key for key, name in names.items() if name is None}
    kept = {key: name for key, name in names.items() if key not in dropped and name is not None}
    reading = _read(kept, entries, model, dialects or {})
    claims = _Claims({}, set())
    _pair(claims, kept, reading, model)
    _check_single(claims, kept, reading, model)
    late, used_late = left_out(drop, {key: (key,) for key in model})
    _check_used(drop, used | used_late)
    dropped |= {claims.pairs.pop(key) for key in late & claims.pairs.keys()}
    lost = _Claims(dict(claims.pairs), set(claims.taken) - dropped, strict=False)
    _pair(lost, {key: names[key] or key for key in names if key in dropped}, reading, model)
    matching = judge(
        model,
        source,
        {key: origin[name] for key, name in claims.pairs.items()},
        {key: origin[name] for key, name in lost.pairs.items() if name in dropped},
        dropped & source.keys(),
        policy,
    )
    matching = reading.told(matching)
    _check_coverage(matching, model, source, min_coverage)
    _check_clear(reading)
    return matching


def _with_mentioned(
    source: Mapping[str, TensorInfo],
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The source with the names it only mentions, and the key behind every name."""
    entries, origin = dict(source), {key: key for key in source}
    for key, info in source.items():
        for alias in info.aliases:
            if alias not in origin:
                entries[alias], origin[alias] = info, key
    return entries, origin


def _read(
    names: Mapping[str, str],
    source: Mapping[str, TensorInfo],
    model: Mapping[str, TensorInfo],
    dialects: Mapping[str, Rules],
) -> _Reading:
    """The reading that lets most tensors match; without a dialect where none does better."""
    best = _Reading(find_rewriting(names, source, model))
    # Where every name of a side is found on the other, it is the same dialect.
    if best.found.named in (len(names), len(model)):
        return best
    bare = {key: strip(name, WRAPPED) for key, name in names.items()}
    for dialect, pairs in dialects.items():
        rules = tuple(compiled(pattern, replacement) for pattern, replacement in pairs)
        for lead in leading(bare):
            inside = {key: name.removeprefix(lead) for key, name in bare.items()}
            spelt = {key: applied(name, rules) for key, name in inside.items()}
            if spelt == inside:
                continue
            reading = _Reading(find_rewriting(spelt, source, model), dialect, rules, lead)
            best = reading if reading.gain > best.gain else best
            if best.found.matched in (len(names), len(model)):
                return best
    return best


@dataclass
class _Claims:
    """Which key of the source each key of the model gets, as it is decided step by step."""

    pairs: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    strict: bool = True

    def take(self, wanted: Mapping[str, str], places: Mapping[str, str]) -> None:
        """Let keys that are still free have the places of their names.

        Args:
            wanted: by key of the source, a name.
            places: by name, the model's key.

        Raises:
            PlanError: two keys want the same place at once.
        """
        claimed: dict[str, str] = {}
        for key, name in wanted.items():
            place = places.get(name)
            if key in self.taken or place is None or place in self.pairs:
                continue
            if place in claimed and self.strict:
                raise _collision(place, claimed[place], key)
            claimed.setdefault(place, key)
        self.pairs.update(claimed)
        self.taken.update(claimed.values())


def _pair(
    claims: _Claims, names: Mapping[str, str], reading: _Reading, model: Mapping[str, TensorInfo]
) -> None:
    """Pair keys with the model's, the surest names first."""
    same = {key: key for key in model}
    claims.take({key: name for key, name in names.items() if key != name}, same)
    claims.take(names, same)
    way = reading.found.rewriting
    if reading.dialect is None and way == Rewriting():
        return
    wanted = {key: strip(reading.spell(name), way.ignored) for key, name in names.items()}
    places: dict[str, str] = {}
    for key in model:
        if key not in claims.pairs:
            name = strip(key, way.ignored)
            # A name that two keys of the model share says which of them is meant for neither.
            places[name] = "" if name in places else key
    places = {name: key for name, key in places.items() if key}
    claims.take(wanted, places)
    if way.prefixed:
        claims.take(_under(wanted, way.source_prefix), _behind(places, way.model_prefix))


def _under(wanted: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        key: name.removeprefix(prefix) for key, name in wanted.items() if name.startswith(prefix)
    }


def _behind(places: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix): key for name, key in places.items() if name.startswith(prefix)
    }


def _check_single(
    claims: _Claims, names: Mapping[str, str], reading: _Reading, model: Mapping[str, TensorInfo]
) -> None:
    """Refuse a key that wrappers alone keep from a place that another rewritten key has."""
    places = {strip(key, WRAPPED): key for key in claims.pairs}
    prefix = strip(reading.found.rewriting.source_prefix, WRAPPED)
    for key, name in names.items():
        if key not in claims.taken:
            bare = strip(reading.spell(name), WRAPPED)
            place = places.get(bare) or places.get(bare.removeprefix(prefix))
            # A key that the model has under its very name keeps it whatever else would fit.
            if place is not None and names[claims.pairs[place]] != place and name not in model:
                raise _collision(place, claims.pairs[place], key)


def _collision(place: str, first: str, second: str) -> PlanError:
    return PlanError(
        "two keys of the source lead to one of the model",
        where=printable(place),
        expected="one",
        found=f"{first!r} and {second!r}",
        fix=f"drop={second!r}, or rename={{{first!r}: {place!r}}}",
    )


def check_share(min_coverage: object) -> None:
    """Refuse what is no share of tensors.

    Raises:
        ArgumentError: no number from 0 to 1.
    """
    if (
        isinstance(min_coverage, bool)
        or not isinstance(min_coverage, int | float)
        or not 0 <= min_coverage <= 1
    ):
        raise ArgumentError(
            "a coverage is a share of tensors",
            where="min_coverage",
            expected="a number from 0 to 1",
            found=repr(min_coverage),
            fix="min_coverage=0.5",
        )


def _check_used(drop: object, used: frozenset[int]) -> None:
    for position, pattern in enumerate(listed(drop, "drop")):
        if position not in used:
            raise ArgumentError(
                "no key of the source or of the model fits this pattern",
                where="drop",
                expected="a key, '*' and '?' allowed, or a module that holds some",
                found=repr(pattern),
                fix="list(source.tensors)",
            )


def _check_clear(reading: _Reading) -> None:
    """Refuse to choose between two parts of the source, or two places in the model."""
    way, rival = reading.found.rewriting, reading.found.rival
    if rival is None:
        return
    ours, theirs = reading.lead + way.source_prefix, reading.lead + rival.source_prefix
    two_parts = ours != theirs
    what = "two parts of the source fit" if two_parts else "the source fits two places in"
    drop, target = theirs.rstrip("."), way.model_prefix
    raise PlanError(
        f"{what} the model equally well",
        where="names",
        expected=f"one way to match {reading.found.matched} tensors",
        found=f"{_way(ours, way.model_prefix)}, or {_way(theirs, rival.model_prefix)}",
        fix=f"drop={drop!r}" if two_parts and drop else f"rename=[(r'^', {target!r})]",
    )


def _way(prefix: str, place: str) -> str:
    return f"{printable(prefix)}* to {printable(place)}*"


def _check_coverage(
    matching: Matching,
    model: Mapping[str, TensorInfo],
    source: Mapping[str, TensorInfo],
    min_coverage: float,
) -> None:
    coverage = matching.coverage
    if coverage.better >= min_coverage:
        return
    left = {key: model[key] for key in matching.missing}
    right = {key: source[key] for key in matching.unexpected}
    near = closest(left, right)
    lines = [f"{coverage} match by name and shape"]
    lines += [str(item) for item in matching.mismatched[:3]]
    lines += [f"{key!r} is closest to {other!r} of the source" for key, other in near]
    if not near:
        lines += [f"the model has {key!r}" for key in list(left)[:3]]
        lines += [f"the source has {key!r}" for key in list(right)[:3]]
    example = f"rename={{{near[0][1]!r}: {near[0][0]!r}}}, or " if near else ""
    enough = floor(coverage.better * 100) / 100
    raise CoverageError(
        "too little of the source fits the model",
        where="source",
        expected=f"{min_coverage:.0%} of the tensors on either side",
        found="\n".join(map(printable, lines)),
        fix=f"{example}min_coverage={enough} if that little is meant",
    )
