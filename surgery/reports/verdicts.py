"""The report on a matching: which tensors of a source go where, and what becomes of the rest."""

from __future__ import annotations

from surgery.reports.report import Column, Fact, Report, Table, describe
from surgery.weights.verdicts import Matching

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
                (Column("verdict", "verdict"), Column("keys", "tensors")),
                matching.listing,
            ),
            *_details(matching),
        ),
        _notes(matching),
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
    model = tuple((k, v, partners.get(k)) for k, v in matching.model_verdicts.items())
    keys = (Column("key", ""), Column("verdict", ""))
    return (
        Table("mismatched", "", _SHAPES, shapes, presence="data"),
        Table("model", "", (*keys, Column("source", "")), model, presence="data"),
        Table("source", "", keys, tuple(matching.source_verdicts.items()), presence="data"),
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
