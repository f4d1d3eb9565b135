"""The report on a matching: which tensors of a source go where, and what becomes of the rest."""

from __future__ import annotations

from collections import Counter

from surgery.reports.areas import bar
from surgery.reports.chart import Chart, Shade
from surgery.reports.report import Column, Fact, Report, Table, describe
from surgery.weights.verdicts import Matching, Verdict

_SHAPES = (
    Column("key", "tensor", "address"),
    Column("source", "in the source", "address"),
    Column("expected", "shape"),
    Column("found", "in the source"),
    Column("policy", "policy"),
)


@describe.register
def _(matching: Matching) -> Report:
    coverage = matching.coverage
    return Report(
        "matching",
        "Matching of weights",
        (
            Fact("model_matched", "of the model, matched", coverage.model_matched, "count"),
            Fact("model_total", "of the model", coverage.model_total, "count"),
            Fact("model_coverage", "coverage of the model", coverage.model, "share"),
            Fact("source_matched", "of the source, matched", coverage.source_matched, "count"),
            Fact("source_total", "of the source", coverage.source_total, "count"),
            Fact("source_coverage", "coverage of the source", coverage.source, "share"),
            Fact("ignored", "", matching.ignored, "list", "data"),
            Fact("source_prefix", "", matching.source_prefix, presence="data"),
            Fact("model_prefix", "", matching.model_prefix, presence="data"),
            Fact("dialect", "", matching.dialect, presence="data"),
        ),
        (
            Table(
                "listing",
                "Verdicts, layers folded",
                (Column("verdict", "verdict", "label"), Column("keys", "tensors")),
                matching.listing,
            ),
            *_details(matching),
        ),
        _notes(matching),
        charts=buckets(matching),
    )


# A shape that is adapted is loaded; one that is skipped stays as the model has it.
_SHADES: dict[Verdict, Shade] = {
    "loaded": "loaded",
    "dtype converted": "loaded",
    "tied": "loaded",
    "shape mismatch": "skipped",
    "missing": "missing",
    "dropped": "missing",
    "unexpected": "unexpected",
}


def shades(matching: Matching) -> dict[str, Shade]:
    """By key of the model: whether it was filled, skipped for its shape, or missing."""
    policies = {item.key: item.policy for item in matching.mismatched}
    return {
        key: _SHADES[verdict] if policies.get(key, "skip") == "skip" else "loaded"
        for key, verdict in matching.model_verdicts.items()
    }


def buckets(matching: Matching) -> tuple[Chart, ...]:
    """How many keys of the model, and of the source, have which verdict."""
    sides = (
        ("model_verdicts", "Tensors of the model", Counter(matching.model_verdicts.values())),
        ("source_verdicts", "Tensors of the source", Counter(matching.source_verdicts.values())),
    )
    return tuple(
        bar(key, title, "tensors", ((v, counts[v], shade) for v, shade in _SHADES.items()))
        for key, title, counts in sides
    )


def _details(matching: Matching) -> tuple[Table, ...]:
    partners = {
        **matching.pairs,
        **matching.dropped,
        **{item.key: item.source for item in matching.mismatched},
    }
    shapes = tuple(
        (item.key, item.source, str(item.expected), str(item.found), _policy(item.policy))
        for item in matching.mismatched
    )
    source = tuple(matching.source_verdicts.items())
    model = tuple((k, v, partners.get(k)) for k, v in matching.model_verdicts.items())
    keys = (Column("key", "tensor", "address"), Column("verdict", "verdict", "label"))
    partner = Column("source", "in the source", "address")
    return (
        Table("mismatched", "Other shapes", _SHAPES, shapes, presence="page"),
        Table("model", "Every tensor of the model", (*keys, partner), model, presence="page"),
        Table("source", "Every tensor of the source", keys, source, presence="page"),
    )


def _policy(policy: object) -> str:
    return policy if isinstance(policy, str) else getattr(policy, "__name__", "a callable")


def _notes(matching: Matching) -> tuple[str, ...]:
    counters = len(matching.counters)
    old = (
        f"{counters} counters of batches (num_batches_tracked) are not in the source, as in files "
        "from before PyTorch 0.4.1. They stay as they are, and nothing depends on them unless a "
        "BatchNorm has momentum=None."
    )
    return tuple(
        note for note in (matching.undone, matching.warning(), old if counters else "") if note
    )
