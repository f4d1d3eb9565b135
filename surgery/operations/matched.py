"""Match a source with a model, through the renaming that layers do in their own loading code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from surgery.errors import PlanError
from surgery.families.registry import Registry
from surgery.operations.own_loading import Converted, converted, has_own_loading
from surgery.weights.match import match
from surgery.weights.names import strip
from surgery.weights.renaming import Rename, renamed
from surgery.weights.value import TensorInfo, Weights
from surgery.weights.verdicts import Matching, printable

_SHOWN = 4


@dataclass(frozen=True)
class Matched:
    """The verdicts, and what was found on the way.

    Attributes:
        matching: one verdict for every key of either side.
        notes: what is good to know.
        warnings: what must not be overlooked.
    """

    matching: Matching
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def matched(
    model: nn.Module,
    weights: Weights,
    infos: Mapping[str, TensorInfo],
    registry: Registry,
    *,
    rename: Rename | None,
    drop: object,
    on_mismatch: object,
    min_coverage: float,
) -> Matched:
    """Give every key of a source and of a model its verdict. No tensor is read.

    Args:
        model: the model, out of its wrappers.
        weights: the source.
        infos: the model's tensors by key.
        registry: the plugins, whose families know dialects.
        rename: the caller's names.
        drop: what to leave out.
        on_mismatch: policies.
        min_coverage: the share of tensors that must match.

    Raises:
        CoverageError: too little matches.
        PlanError: keys collide, or a module computes what it loads.
        ArgumentError: a wrong argument.
    """
    family = registry.claim(model)
    dialects = family.renames if family is not None else None

    def matching(rename: Rename | None, least: float) -> Matching:
        return match(
            infos,
            weights.tensors,
            dialects=dialects,
            rename=rename,
            drop=drop,
            on_mismatch=on_mismatch,
            min_coverage=least,
        )

    if not has_own_loading(model):
        return Matched(matching(rename, min_coverage))
    first = matching(rename, 0.0 if 0 <= min_coverage <= 1 else min_coverage)
    asked = renamed(weights.tensors, rename)
    names = _in_the_model(first, asked)
    found = converted(model, names, weights.tensors, weights.metadata)
    _check_uncomputed(found, first)
    if not found.names:
        # The same as before, and the check of how much matches.
        return Matched(matching(rename, min_coverage), _failures(found), ())
    both = {**asked, **found.names}
    shown = ", ".join(f"{printable(k)} -> {printable(n)}" for k, n in [*found.names.items()][:2])
    note = f"{len(found.names)} keys renamed by the model's own loading code: {shown}"
    return Matched(matching(both, min_coverage), (note, *_failures(found)))


def _in_the_model(first: Matching, asked: Mapping[str, str | None]) -> dict[str, str]:
    """By key of the source, the name it has in the model, also where that has no such tensor."""
    places = {source: key for key, source in first.pairs.items()}
    places |= {item.source: item.key for item in first.mismatched}
    names = {}
    for key, name in asked.items():
        if name is not None and key not in first.dropped_sources:
            bare = strip(name, frozenset(first.ignored)).removeprefix(first.source_prefix)
            names[key] = places.get(key) or first.model_prefix + bare
    return names


def _check_uncomputed(found: Converted, first: Matching) -> None:
    """Refuse to load as they are what a module converts."""
    wrong = [name for name in found.computed if name in first.pairs]
    if wrong:
        raise PlanError(
            "a module converts this tensor when it loads it, by code of its own",
            where=wrong[0],
            expected="values that are loaded as they are",
            found=f"{found.computed[wrong[0]]} computes {len(wrong)} tensors of the source",
            fix=f"model.load_state_dict(...), or drop={wrong[0]!r}",
        )


def _failures(found: Converted) -> tuple[str, ...]:
    return tuple(
        f"the loading code of {where} was not followed: {reason}"
        for where, reason in [*found.failed.items()][:_SHOWN]
    )
