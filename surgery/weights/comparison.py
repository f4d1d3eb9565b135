"""Compare two models, two checkpoints, or one of each: names, shapes, dtypes, values and ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from surgery.errors import ArgumentError, CoverageError, PlanError, WeightsError
from surgery.families.registry import Registry, in_force
from surgery.shown import Shown
from surgery.tree import unwrap
from surgery.weights.distance import Distance, distance, together
from surgery.weights.match import match
from surgery.weights.memory import Memory
from surgery.weights.renaming import Rename
from surgery.weights.source import read
from surgery.weights.value import TensorInfo, Weights
from surgery.weights.verdicts import Matching, printable

# Below this share of tensors that fit, wrappers and prefixes would be guesswork.
_SURE = 0.5


@dataclass(frozen=True)
class Compared:
    """Two tensors that go together.

    Attributes:
        name: in the first source.
        other: in the second.
        shapes: of the first and of the second.
        dtypes: likewise.
        distance: how far apart their values are; None where they were not compared.
    """

    name: str
    other: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[torch.dtype, torch.dtype]
    distance: Distance | None = None


@dataclass(frozen=True)
class Difference(Shown):
    """What ``surgery.diff`` found. Each tensor of either side is in one bucket.

    Attributes:
        a: where the first came from.
        b: where the second came from.
        removed: names that only the first has.
        added: names that only the second has.
        reshaped: pairs of different shapes.
        converted: pairs of one shape and of different dtypes; their values are compared too.
        changed: pairs whose values differ, by more than the tolerance where there is one.
        close: pairs whose values differ by less than the tolerance.
        equal: pairs with no difference. Where values were not compared, all the rest.
        tied: groups of the first's names that are one tensor on one side only: the side that
            ties them, ``a`` or ``b``, and the names.
        metadata: entries that differ, of the headers of two safetensors files or of the module
            versions of two state dicts: the key, the first's value and the second's.
        values: whether values were compared.
        tolerance: the absolute and the relative one.
        notes: how names were matched, and what was not compared.
    """

    a: str
    b: str
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    reshaped: tuple[Compared, ...] = ()
    converted: tuple[Compared, ...] = ()
    changed: tuple[Compared, ...] = ()
    close: tuple[Compared, ...] = ()
    equal: tuple[Compared, ...] = ()
    tied: tuple[tuple[str, tuple[str, ...]], ...] = ()
    metadata: tuple[tuple[str, str | None, str | None], ...] = ()
    values: bool = True
    tolerance: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether no tensor was added, removed, reshaped, converted, changed or tied differently.

        Other names for the same tensors, and other metadata, do not count.
        """
        apart = (self.removed, self.added, self.reshaped, self.converted, self.changed, self.tied)
        return not any(apart)

    @property
    def pairs(self) -> tuple[Compared, ...]:
        """All that go together, whatever was found."""
        return (*self.reshaped, *self.converted, *self.changed, *self.close, *self.equal)

    @cached_property
    def renamed(self) -> Mapping[str, str]:
        """By name in the first, the name in the second, where that is another one."""
        return {each.name: each.other for each in self.pairs if each.name != each.other}

    @property
    def nonfinite(self) -> tuple[Compared, ...]:
        """Pairs that hold NaN or infinite numbers, on either side."""
        return tuple(each for each in self.pairs if each.distance and any(each.distance.nonfinite))

    @property
    def distance(self) -> Distance:
        """How far apart the tensors are whose values differ, taken together."""
        found = (each.distance for each in (*self.converted, *self.changed, *self.close))
        return together(each for each in found if each is not None)


def diff(
    a: object,
    b: object,
    *,
    rename: Rename | None = None,
    exact_names: bool = False,
    tolerance: float | tuple[float, float] | None = None,
    values: bool = True,
    mmap: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    registry: Registry | None = None,
) -> Difference:
    """Compare two models, two checkpoints, or one of each, tensor by tensor.

    Names are matched as ``surgery.load_weights`` matches them: through wrappers and prefixes, and
    by the dialects that a model's family knows, where at least half of either side fits that way;
    equal names come first. Tensors are read a pair at a time and compared slice by slice. Equal
    bytes are not computed with. Integers are compared exactly; NaN equals NaN at the same place.

    Args:
        a: a file, a directory, a mapping from names to tensors, a model, or ``Weights``. Of a
            model, what its ``state_dict`` holds.
        b: another.
        rename: names for the keys of ``b``: a mapping from keys to names, pairs of a regular
            expression and a replacement, or a callable from a key to its name, or None for a key
            that goes with nothing.
        exact_names: compare tensors of the very same name only.
        tolerance: how far apart floating values may be and count as unchanged: absolute and
            relative to the value in ``a``, or one number for both.
        values: whether to compare values; without, no tensor is read.
        mmap: map files instead of copying what is read, as in ``surgery.weights.read``.
        progress: called before each pair with its name, how many are done, and how many there are.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The difference. ``same`` says whether there is one; ``print`` shows it, layers folded.

    Raises:
        ArgumentError: a wrong argument, or values to compare that a tensor on meta does not have.
        PlanError: ``rename`` leads two keys of ``b`` to one name.
        WeightsError: a source cannot be read, or a tensor of a kind that cannot be compared.

    Example:
        >>> import torch, surgery
        >>> layer = torch.nn.Linear(3, 2)
        >>> other = {f"module.{key}": value.clone() for key, value in layer.state_dict().items()}
        >>> other["module.weight"][1, 2] = 7
        >>> found = surgery.diff(layer, other)
        >>> found.same, found.renamed["bias"]
        (False, 'module.bias')
        >>> [(each.name, each.distance.changed, each.distance.elements) for each in found.changed]
        [('weight', 1, 6)]
    """
    if exact_names and rename is not None:
        raise ArgumentError(
            "exact names leave nothing to rename",
            where="exact_names, rename",
            expected="one of the two",
            found="both",
            fix="surgery.diff(a, b, rename=...)",
        )
    allowed = _tolerance(tolerance)
    known = in_force(registry)
    one, other = (_Side.of(source, mmap, known) for source in (a, b))
    names = _Names({k: k for k in one.infos if k in other.infos})
    if not exact_names:
        names = _matched(one, other, rename)
    kinds = _Values(one, other, allowed) if values else None
    found = _buckets(one, other, names, kinds, progress or (lambda what, done, total: None))
    return replace(
        found,
        tied=_tied_differently(one.infos, other.infos, names.pairs),
        metadata=_metadata(one.weights, other.weights),
        values=values,
        tolerance=allowed,
        notes=(*names.notes, *one.notes("a"), *other.notes("b")),
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """One source, with every name that leads to a tensor."""

    weights: Weights
    infos: Mapping[str, TensorInfo]
    dialects: Mapping[str, tuple[tuple[str, str], ...]] | None

    @classmethod
    def of(cls, source: object, mmap: bool, registry: Registry) -> _Side:
        weights = read(source, mmap=mmap, registry=registry)
        infos = dict(weights.tensors)
        # A name that a file only mentions as tied to another can be read like any other.
        for name, info in weights.tensors.items():
            group = (name, *info.aliases)
            for alias in info.aliases:
                others = tuple(each for each in group if each != alias)
                infos.setdefault(alias, replace(info, aliases=others))
        family = registry.claim(unwrap(source)) if isinstance(source, nn.Module) else None
        return cls(weights, infos, family.renames if family is not None else None)

    @property
    def untied(self) -> dict[str, TensorInfo]:
        """The facts of each name on its own: whoever is tied is still compared."""
        return {name: replace(info, aliases=()) for name, info in self.infos.items()}

    def notes(self, label: str) -> tuple[str, ...]:
        return tuple(f"{label}: {note}" for note in self.weights.notes)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor itself where it is in memory, or read from its file."""
        store = self.weights._store
        if isinstance(store, Memory) and name in store.tensors:
            return store.tensors[name].detach()
        return self.weights.read(name)


@dataclass(frozen=True)
class _Names:
    """Which name of the second goes with which of the first, in the order of the first."""

    pairs: Mapping[str, str]
    notes: tuple[str, ...] = ()


def _matched(one: _Side, other: _Side, rename: Rename | None) -> _Names:
    exact = {name: name for name in one.infos if name in other.infos}
    if exact.keys() == one.infos.keys() == other.infos.keys() and rename is None:
        return _Names(exact)
    # A dialect leads to the names of a model, so that a model is matched with, on either side.
    turned = rename is None and one.dialects is None and other.dialects is not None
    model, source = (other, one) if turned else (one, other)
    try:
        found = match(
            model.untied,
            source.untied,
            dialects=model.dialects,
            rename=rename,
            min_coverage=_SURE if rename is None else 0.0,
        )
    except CoverageError:
        return _Names(exact)
    except PlanError as error:
        if rename is not None:
            raise
        return _Names(exact, (f"only equal names were compared: {error.what} ({error.found})",))
    pairs = {**found.pairs, **{item.key: item.source for item in found.mismatched}}
    if turned:
        pairs = {name: key for key, name in pairs.items()}
    ordered = {name: pairs[name] for name in one.infos if name in pairs}
    return _Names(ordered, _undone(found, *("ab" if turned else "ba")))


def _undone(found: Matching, source: str, model: str) -> tuple[str, ...]:
    """What was undone in the names, in words."""
    parts = []
    if found.ignored:
        parts.append(f"{', '.join(map(printable, found.ignored))} passed over")
    if found.source_prefix:
        parts.append(f"{printable(found.source_prefix)!r} taken off the names of {source}")
    if found.model_prefix:
        parts.append(f"{printable(found.model_prefix)!r} taken off those of {model}")
    if found.dialect is not None:
        parts.append(f"{source} read as the dialect {found.dialect!r}")
    return (f"names matched with {'; '.join(parts)}",) if parts else ()


@dataclass(frozen=True, eq=False)
class _Values:
    """Compares the values of pairs, tied ones once."""

    one: _Side
    other: _Side
    tolerance: tuple[float, float]
    done: dict[tuple[str, str], Distance] = field(default_factory=dict)

    def distance(self, name: str, other: str) -> Distance:
        """How far apart two tensors of one shape are."""
        key = _first(self.one.infos, name), _first(self.other.infos, other)
        if key not in self.done:
            self.done[key] = self._measured(name, other)
        return self.done[key]

    def _measured(self, name: str, other: str) -> Distance:
        left, right = self.one.tensor(name), self.other.tensor(other)
        for label, key, tensor in ("a", name, left), ("b", other, right):
            if tensor.is_meta:
                raise _without_values(label, key)
        try:
            atol, rtol = self.tolerance
            return distance(left, right, atol=atol, rtol=rtol)
        except (RuntimeError, TypeError) as error:  # what a foreign kind of tensor cannot do
            raise WeightsError(
                "these tensors cannot be compared by value",
                where=printable(name),
                expected="plain tensors",
                found=f"{type(left).__name__} and {type(right).__name__}: {error}",
                fix="surgery.diff(a, b, values=False), which compares all but values",
            ) from error


def _first(infos: Mapping[str, TensorInfo], name: str) -> str:
    return min(name, *infos[name].aliases) if infos[name].aliases else name


def _without_values(label: str, name: str) -> ArgumentError:
    return ArgumentError(
        "a tensor on meta has no values to compare",
        where=f"{label}: {printable(name)}",
        expected="a tensor with values",
        found="one on meta",
        fix="surgery.diff(a, b, values=False), which compares all but values",
    )


def _buckets(
    one: _Side,
    other: _Side,
    names: _Names,
    values: _Values | None,
    progress: Callable[[str, int, int], None],
) -> Difference:
    """Every tensor in one bucket, in the order of the first source, then of the second."""
    taken = set(names.pairs.values())
    found: dict[str, list[Compared]] = {}
    for done, (name, partner) in enumerate(names.pairs.items()):
        progress(name, done, len(names.pairs))
        left, right = one.infos[name], other.infos[partner]
        pair = Compared(
            name,
            partner,
            (tuple(left.shape), tuple(right.shape)),
            (left.dtype, right.dtype),
        )
        if left.shape == right.shape and values is not None:
            pair = replace(pair, distance=values.distance(name, partner))
        found.setdefault(_bucket(pair), []).append(pair)
    reshaped, converted, changed, close, equal = (tuple(found.get(key, ())) for key in _BUCKETS)
    return Difference(
        one.weights.origin,
        other.weights.origin,
        tuple(name for name in one.infos if name not in names.pairs),
        tuple(name for name in other.infos if name not in taken),
        reshaped,
        converted,
        changed,
        close,
        equal,
    )


_BUCKETS = ("reshaped", "converted", "changed", "close", "equal")


def _bucket(pair: Compared) -> str:
    if pair.shapes[0] != pair.shapes[1]:
        return "reshaped"
    if pair.dtypes[0] != pair.dtypes[1]:
        return "converted"
    if pair.distance is None or not pair.distance.apart:
        return "equal"
    return "changed" if pair.distance.changed else "close"


def _tied_differently(
    one: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo], pairs: Mapping[str, str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Groups of names, of those that go together, that are one tensor on one side only."""
    first = {name: _first(one, name) for name in pairs}
    second = {name: _first(other, partner) for name, partner in pairs.items()}
    return (*_split("a", first, second), *_split("b", second, first))


def _split(
    side: str, tied: Mapping[str, str], elsewhere: Mapping[str, str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    groups: dict[str, list[str]] = {}
    for name, group in tied.items():
        groups.setdefault(group, []).append(name)
    return tuple(
        (side, tuple(names))
        for names in groups.values()
        if len({elsewhere[name] for name in names}) > 1
    )


def _metadata(one: Weights, other: Weights) -> tuple[tuple[str, str | None, str | None], ...]:
    """Entries of the metadata that differ, where both sources say the same sort of thing."""
    first, second = one.metadata, other.metadata
    headers = ["safetensors" in weights.format for weights in (one, other)]
    keys = [*first, *(key for key in second if key not in first)]
    if not all(headers):
        # Versions of modules, which half of all checkpoints lack.
        keys = [key for key in first if key in second] if not any(headers) else []
    return tuple(
        (key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)
    )


def _tolerance(tolerance: object) -> tuple[float, float]:
    if tolerance is None:
        return 0.0, 0.0
    both = tolerance if isinstance(tolerance, tuple) else (tolerance, tolerance)
    if len(both) != 2 or not all(map(_is_allowance, both)):
        raise ArgumentError(
            "a tolerance is one number, or an absolute and a relative one",
            where="tolerance",
            expected="finite numbers, 0 or more",
            found=repr(tolerance),
            fix="tolerance=(1e-8, 1e-5)",
        )
    return float(both[0]), float(both[1])


def _is_allowance(number: object) -> bool:
    whole = isinstance(number, int | float) and not isinstance(number, bool)
    return whole and 0 <= number < float("inf")  # type: ignore[operator]
