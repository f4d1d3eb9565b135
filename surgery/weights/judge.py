"""From pairs of keys to one verdict for every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from surgery.weights.value import TensorInfo
from surgery.weights.verdicts import (
    Conversion,
    Coverage,
    Matching,
    Mismatch,
    Policy,
    is_counter,
)


def judge(
    model: Mapping[str, TensorInfo],
    source: Mapping[str, TensorInfo],
    pairs: Mapping[str, str],
    dropped: Mapping[str, str],
    dropped_sources: Set[str],
    policy: Callable[[str], Policy],
) -> Matching:
    """Give every key of a model and of a source one verdict.

    Args:
        model: by key of the model.
        source: by key of the source.
        pairs: by key of the model, the source's key that belongs to it.
        dropped: the same for those that the caller dropped.
        dropped_sources: all keys of the source that the caller dropped.
        policy: of a key of the model.

    Example:
        >>> import torch
        >>> one = {"w": TensorInfo((2, 3), torch.float32, 24)}
        >>> judge(one, one, {"w": "w"}, {}, frozenset(), lambda key: "skip").coverage.better
        1.0
    """
    tied, tied_sources = _ties(model, source, pairs)
    alone = {key: name for key, name in pairs.items() if key not in tied}
    loaded, converted, mismatched = {}, [], []
    for key in (key for key in model if key in alone):
        name = alone[key]
        expected, found = model[key], source[name]
        if expected.shape != found.shape:
            shapes = tuple(expected.shape), tuple(found.shape)
            mismatched.append(Mismatch(key, name, *shapes, policy(key)))
        elif expected.dtype != found.dtype:
            converted.append(Conversion(key, name, expected.dtype, found.dtype))
        else:
            loaded[key] = name
    # A tensor may be used under one name and dropped under another: used counts.
    used = {*alone.values(), *tied_sources}
    gone = {key: dropped[key] for key in model if key in dropped and key not in tied}
    lost = tuple(name for name in source if name in dropped_sources and name not in used)
    filled = {**loaded, **{item.key: item.source for item in converted}}
    missing = tuple(key for key in model if not (key in pairs or key in tied or key in gone))
    counters = sum(is_counter(key) for key in missing)
    fed = {*filled.values()}
    return Matching(
        pairs={key: filled[key] for key in model if key in filled},
        loaded=loaded,
        converted=tuple(converted),
        mismatched=tuple(mismatched),
        missing=missing,
        unexpected=tuple(name for name in source if name not in used and name not in lost),
        tied=tied,
        tied_sources=tied_sources,
        dropped=gone,
        dropped_sources=lost,
        rivals=tuple(
            name for name, other in tied_sources.items() if other not in source[name].aliases
        ),
        coverage=Coverage(
            len(filled) + sum(other in filled for other in tied.values()),
            len(model) - len(gone) - counters,
            len(fed) + sum(other in fed for other in tied_sources.values()),
            len(source) - len(lost),
        ),
    )


def _ties(
    model: Mapping[str, TensorInfo], source: Mapping[str, TensorInfo], pairs: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Keys that another key of the same tensor speaks for: the model's, then the source's."""
    tied: dict[str, str] = {}
    done: set[str] = set()
    for key, info in model.items():
        group = [key, *(alias for alias in info.aliases if alias in model)]
        if key in done or not any(member in pairs for member in group):
            continue
        done.update(group)
        paired = [member for member in group if member in pairs]
        fitting = (member for member in paired if source[pairs[member]].shape == info.shape)
        first = next(fitting, paired[0])
        tied |= {member: first for member in group if member != first}
    alone = {name for key, name in pairs.items() if key not in tied}
    return tied, {
        pairs[key]: pairs[other]
        for key, other in tied.items()
        if key in pairs and pairs[key] not in alone
    }
