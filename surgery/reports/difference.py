"""The report on a difference: what is only here or there, and how far apart the rest is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import product

from surgery.patterns import prefixes
from surgery.reports.report import Column, Fact, Report, Table, Value, describe
from surgery.weights.brief import brief
from surgery.weights.comparison import Compared, Difference
from surgery.weights.distance import Distance, together
from surgery.weights.folding import fold

_RANGE = re.compile(r"\{([\d.,]+)\}")
_FORMS = (
    Column("difference", "difference"),
    Column("tensors", "tensors"),
    Column("a", "in a"),
    Column("b", "in b"),
)
_DISTANCES = (
    Column("tensors", "tensors"),
    Column("changed", "changed", "count"),
    Column("elements", "of", "count"),
    Column("largest", "largest difference"),
    Column("relative", "relative, L2"),
)
_PAIRS = (
    *(Column(key, "") for key in ("name", "other", "verdict", "a_shape", "b_shape")),
    *(Column(key, "") for key in ("a_dtype", "b_dtype", "elements", "changed", "apart")),
    *(Column(key, "") for key in ("largest", "difference", "norm", "relative")),
    *(Column(key, "") for key in ("a_nonfinite", "b_nonfinite")),
)


@describe.register
def _(difference: Difference) -> Report:
    return Report(
        "difference",
        "Difference",
        _facts(difference),
        (
            Table("listing", "Differences, layers folded", _FORMS, tuple(_forms(difference))),
            Table("distances", "Changed values, layers folded", _DISTANCES, _folded(difference)),
            _nonfinite(difference),
            _metadata(difference),
            Table("pairs", "", _PAIRS, tuple(_pairs(difference)), presence="data"),
            *_names(difference),
        ),
        (*_renamed(difference), *difference.notes),
        lead=_lead(difference),
    )


def _facts(found: Difference) -> tuple[Fact, ...]:
    counts = {
        "only in a": found.removed,
        "only in b": found.added,
        "of another shape": found.reshaped,
        "of another dtype": found.converted,
        "changed": found.changed,
        "within the tolerance": found.close,
        "equal": found.equal,
    }
    keys = ("removed", "added", "reshaped", "converted", "changed", "close", "equal")
    total = found.distance
    return (
        Fact("a", "a", found.a),
        Fact("b", "b", found.b),
        Fact("same", "", found.same, presence="data"),
        Fact("values", "values compared", found.values, "answer"),
        Fact("tolerance", "tolerance", _tolerance(found), presence="where any"),
        *(
            Fact(f"{key}_count", label, len(names), "count", "where any")
            for key, (label, names) in zip(keys, counts.items(), strict=True)
        ),
        Fact("changed_elements", "changed elements", total.changed, "count", "where any"),
        Fact("largest", "", _raw(total.largest), presence="data"),
        Fact("relative", "", _raw(total.relative), presence="data"),
    )


def _tolerance(found: Difference) -> str | None:
    atol, rtol = found.tolerance
    return f"{atol:g} and {rtol:g} of the value in a" if atol or rtol else None


def _lead(found: Difference) -> str:
    if not found.same:
        total = found.distance
        by = f": values by at most {_written(total.largest)}" if total.apart else ""
        share = "" if not total.relative else f", {_written(total.relative)} in relative L2 norm"
        return f"They differ{by}{share}."
    compared = "name, shape, dtype and value" if found.values else "name, shape and dtype"
    near = " beyond the tolerance" if found.close else ""
    return f"No difference in {compared}{near}."


def _forms(found: Difference) -> Iterator[tuple[Value, ...]]:
    """What is not a matter of values."""
    for line, count in _whole(found.removed, (pair.name for pair in found.pairs)):
        yield ("only in a", line, count, None)
    for line, count in _whole(found.added, (pair.other for pair in found.pairs)):
        yield ("only in b", line, None, count)
    for label, pairs, said in (
        ("another shape", found.reshaped, _shape),
        ("another dtype", found.converted, _dtype),
    ):
        for (first, second), names in _alike(pairs, said).items():
            yield from ((label, line, first, second) for line in fold(names))
    for side, group in found.tied:
        both = ("one tensor", "apart")
        yield ("tied", fold(group), *(both if side == "a" else both[::-1]))


def _whole(names: Iterable[str], others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names folded, those of a module that has no other as one; and how many there are."""
    known = {prefix for name in others for prefix in prefixes(name)}
    members: dict[str, list[str]] = {}
    for name in names:
        alone = (prefix for prefix in prefixes(name)[:-1] if prefix not in known)
        module = next(alone, None)
        members.setdefault(name if module is None else f"{module}.*", []).append(name)
    units = {unit if len(all_) > 1 else all_[0]: len(all_) for unit, all_ in members.items()}
    for line in fold(units):
        count = sum(units[unit] for unit in ([line] if line in units else unfold(line)))
        yield line, f"{count:,} tensor{'s' * (count > 1)}"


def _alike(
    pairs: Iterable[Compared], said: Callable[[Compared, int], str]
) -> dict[tuple[str, str], list[str]]:
    """The names of pairs of which the same is to be said on either side."""
    groups: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        groups.setdefault((said(pair, 0), said(pair, 1)), []).append(pair.name)
    return groups


def _shape(pair: Compared, side: int) -> str:
    return str(list(pair.shapes[side]))


def _dtype(pair: Compared, side: int) -> str:
    return str(pair.dtypes[side]).removeprefix("torch.")


def _folded(found: Difference) -> tuple[tuple[Value, ...], ...]:
    """A row for each line of changed tensors: its tensors taken together."""
    distances = {
        pair.name: pair.distance
        for pair in (*found.changed, *found.converted, *found.close)
        if pair.distance is not None and pair.distance.apart
    }
    rows: list[tuple[Value, ...]] = []
    for line in fold(distances):
        members = [line] if line in distances else unfold(line)
        whole = together(distances[name] for name in members)
        rows.append(
            (
                line,
                whole.changed,
                whole.elements,
                _rounded(whole.largest),
                _rounded(whole.relative),
            )
        )
    return tuple(rows)


def unfold(line: str) -> list[str]:
    """The names that one folded line stands for.

    Args:
        line: what ``surgery.weights.folding.fold`` made of several names.

    Returns:
        The names, in order.

    Example:
        >>> unfold("layer{1..2}.0.conv.{0,3}")
        ['layer1.0.conv.0', 'layer1.0.conv.3', 'layer2.0.conv.0', 'layer2.0.conv.3']
    """
    texts = _RANGE.split(line)
    choices = [_numbers(text) if place % 2 else [text] for place, text in enumerate(texts)]
    return ["".join(parts) for parts in product(*choices)]


def _numbers(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        found += map(str, range(int(first), int(last or first) + 1))
    return found


def _written(number: float) -> str:
    """A size for people: exact where it is a whole number, else with three digits."""
    return f"{number:,}" if isinstance(number, int) else f"{number:.3g}"


def _rounded(number: float | None) -> float | None:
    """Three digits of a number; the pairs have all of them."""
    known = _raw(number)
    return known if known is None or isinstance(known, int) else float(f"{known:.3g}")


def _raw(number: float | None) -> float | None:
    """A number as JSON knows them: it has neither NaN nor infinity."""
    return number if number is None or math.isfinite(number) else None


def _nonfinite(found: Difference) -> Table:
    groups: dict[Hashable, list[str]] = {}
    for pair in found.nonfinite:
        counts = pair.distance.nonfinite if pair.distance is not None else (0, 0)
        groups.setdefault(counts, []).append(pair.name)
    columns = (
        Column("tensors", "tensors"),
        Column("a", "in a", "count"),
        Column("b", "in b", "count"),
    )
    return Table(
        "nonfinite",
        "NaN or infinite",
        columns,
        tuple((line, *counts) for counts, names in groups.items() for line in fold(names)),  # type: ignore[misc]
    )


def _metadata(found: Difference) -> Table:
    columns = (Column("key", "key"), Column("a", "in a"), Column("b", "in b"))
    shown = tuple((key, *map(_entry, values)) for key, *values in found.metadata)
    return Table("metadata", "Metadata", columns, shown)


def _entry(value: str | None) -> str | None:
    return None if value is None else brief(value)


def _pairs(found: Difference) -> Iterator[tuple[Value, ...]]:
    for verdict in ("reshaped", "converted", "changed", "close", "equal"):
        pairs: Sequence[Compared] = getattr(found, verdict)
        for pair in pairs:
            yield (
                *(pair.name, pair.other, verdict),
                *map(tuple, pair.shapes),
                *(_dtype(pair, 0), _dtype(pair, 1)),
                *_measures(pair.distance),
            )


def _measures(distance: Distance | None) -> tuple[Value, ...]:
    if distance is None:
        return (None,) * 9
    return (
        *(distance.elements, distance.changed, distance.apart),
        *map(_raw, (distance.largest, distance.difference, distance.norm, distance.relative)),
        *distance.nonfinite,
    )


def _names(found: Difference) -> tuple[Table, ...]:
    """What has no partner, and what has one of another name, one by one."""
    return tuple(
        Table(key, "", (Column("name", ""),), tuple((name,) for name in names), presence="data")
        for key, names in (("removed", found.removed), ("added", found.added))
    )


def _renamed(found: Difference) -> tuple[str, ...]:
    if not found.renamed:
        return ()
    first, other = next(iter(found.renamed.items()))
    return (f"{len(found.renamed):,} go by another name in b, as {first} by {other}",)
