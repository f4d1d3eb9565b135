"""What a matching of a source to a model found: one verdict for every key of either side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from surgery.shown import Shown
from surgery.weights.folding import fold

if TYPE_CHECKING:
    import torch

Policy: TypeAlias = "Literal['skip', 'error', 'adapt'] | Callable[..., Any]"
Verdict: TypeAlias = Literal[
    "loaded", "dtype converted", "tied", "shape mismatch", "missing", "unexpected", "dropped"
]
# Files from before PyTorch 0.4.1 have no counter, and a BatchNorm works without its value.
_COUNTER = "num_batches_tracked"
_SHOWN = 4


@dataclass(frozen=True)
class Conversion:
    """A tensor that fits by name and shape and is loaded in another dtype.

    Attributes:
        key: the model's key.
        source: the source's.
        expected: the model's dtype, into which it is converted.
        found: the source's.
    """

    key: str
    source: str
    expected: torch.dtype
    found: torch.dtype

    @property
    def lossy(self) -> bool:
        """Whether the model's dtype cannot hold such numbers at all: fractions in integers."""
        expected, found = self.expected, self.found
        return (found.is_complex and not expected.is_complex) or (
            (found.is_floating_point or found.is_complex)
            and not (expected.is_floating_point or expected.is_complex)
        )


@dataclass(frozen=True)
class Mismatch:
    """A tensor that fits by name and not by shape.

    Attributes:
        key: the model's key.
        source: the source's.
        expected: the model's shape.
        found: the source's.
        policy: what is to become of it.
    """

    key: str
    source: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    policy: Policy

    def __str__(self) -> str:
        return f"{self.key}: {list(self.found)} in the source, {list(self.expected)} in the model"


@dataclass(frozen=True)
class Coverage:
    """How many tensors match by name and shape.

    What the caller dropped, and counters of batches that old files lack, are not counted.

    Attributes:
        model_matched: of the model's, those that match.
        model_total: the model's.
        source_matched: of the source's, those that match.
        source_total: the source's.
    """

    model_matched: int
    model_total: int
    source_matched: int
    source_total: int

    @property
    def model(self) -> float:
        """The share of the model's tensors that match, 0 to 1."""
        return _share(self.model_matched, self.model_total)

    @property
    def source(self) -> float:
        """The share of the source's tensors that match, 0 to 1."""
        return _share(self.source_matched, self.source_total)

    @property
    def better(self) -> float:
        """The larger of the two: a trunk fills little of a model, and all of it may be used."""
        return max(self.model, self.source)

    def __str__(self) -> str:
        return (
            f"{self.model_matched} of {self.model_total} tensors of the model and "
            f"{self.source_matched} of {self.source_total} of the source"
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Matching(Shown):
    """Every key of a model and of a source with its one verdict.

    Attributes:
        pairs: what to load: by key of the model, in its order, the source's key. Those of
            ``loaded`` and of ``converted``.
        loaded: by key of the model, the source's key, where shape and dtype are the same.
        converted: what is loaded in another dtype.
        mismatched: what fits by name and not by shape, each with its policy.
        missing: keys of the model that the source has nothing for.
        unexpected: keys of the source that the model has no place for.
        tied: keys of the model that share their tensor with another, and that one's key.
        tied_sources: keys of the source that lead to a tied tensor another key fills, and that
            other key of the source.
        dropped: by key of the model, the source's key that the caller dropped.
        dropped_sources: all keys of the source that the caller dropped.
        rivals: of ``tied_sources``, those that are not tied in the source: nothing is lost only
            where their values equal those of the key that is loaded.
        ignored: components of keys that were passed over as wrappers, wherever they stood.
        source_prefix: what was taken off the source's keys, its dot included.
        model_prefix: what stands before them in the model, its dot included.
        dialect: which of the family's dialects was used.
        coverage: how many tensors match.
    """

    pairs: Mapping[str, str]
    loaded: Mapping[str, str]
    converted: tuple[Conversion, ...]
    mismatched: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    tied: Mapping[str, str]
    tied_sources: Mapping[str, str]
    dropped: Mapping[str, str]
    dropped_sources: tuple[str, ...]
    rivals: tuple[str, ...]
    coverage: Coverage
    ignored: tuple[str, ...] = ()
    source_prefix: str = ""
    model_prefix: str = ""
    dialect: str | None = None

    @cached_property
    def counters(self) -> tuple[str, ...]:
        """The missing keys that are counters of batches, which old files lack and no one needs."""
        return tuple(key for key in self.missing if is_counter(key))

    @property
    def absent(self) -> tuple[str, ...]:
        """The missing keys but for the counters: what stays as the model has it."""
        return tuple(key for key in self.missing if not is_counter(key))

    @cached_property
    def model_verdicts(self) -> Mapping[str, Verdict]:
        """The verdict on each key of the model."""
        return {
            **dict.fromkeys(self.loaded, "loaded"),
            **{item.key: "dtype converted" for item in self.converted},
            **dict.fromkeys(self.tied, "tied"),
            **{item.key: "shape mismatch" for item in self.mismatched},
            **dict.fromkeys(self.missing, "missing"),
            **dict.fromkeys(self.dropped, "dropped"),
        }

    @cached_property
    def source_verdicts(self) -> Mapping[str, Verdict]:
        """The verdict on each key of the source."""
        return {
            **dict.fromkeys(self.tied_sources, "tied"),
            **{item.source: "shape mismatch" for item in self.mismatched},
            **{item.source: "dtype converted" for item in self.converted},
            **dict.fromkeys(self.loaded.values(), "loaded"),
            **dict.fromkeys(self.unexpected, "unexpected"),
            **dict.fromkeys(self.dropped_sources, "dropped"),
        }

    @property
    def listing(self) -> tuple[tuple[str, str], ...]:
        """The verdicts in words, each with its keys, layers folded; what went wrong first."""
        listed: tuple[tuple[str, Iterable[str]], ...] = (
            ("shape mismatch", map(str, self.mismatched)),
            ("missing", self.absent),
            ("unexpected", self.unexpected),
            ("dropped", self.dropped_sources),
            ("tied", self.tied),
            ("missing, as in old files", self.counters),
            ("dtype converted", (item.key for item in self.converted)),
            ("loaded", self.loaded),
        )
        return tuple((name, line) for name, keys in listed for line in fold(keys))

    @property
    def lines(self) -> tuple[str, ...]:
        """The listing as lines to print, control characters escaped: keys are data."""
        return tuple(f"{name}: {printable(line)}" for name, line in self.listing)

    @property
    def undone(self) -> str:
        """What was undone in the keys, in words; empty where they were taken as they are."""
        parts = []
        if self.ignored:
            parts.append(f"wrappers passed over: {', '.join(self.ignored)}")
        if self.source_prefix:
            parts.append(f"{self.source_prefix!r} taken off the source's keys")
        if self.model_prefix:
            parts.append(f"{self.model_prefix!r} put before them")
        if self.dialect is not None:
            parts.append(f"read as the dialect {self.dialect!r}")
        return "; ".join(parts)

    def warning(self) -> str | None:
        """What was skipped or left missing, in one sentence; None where nothing was.

        Returns:
            The sentence, with control characters escaped: keys are data.
        """
        skipped = [item.key for item in self.mismatched if item.policy == "skip"]
        lossy = [item.key for item in self.converted if item.lossy]
        parts = [
            f"{_tensors(keys)} {says}"
            for keys, says in (
                (skipped, "skipped for another shape"),
                (self.absent, "not in the source and left as the model has them"),
                (lossy, "cut to whole or real numbers by the model's dtype"),
            )
            if keys
        ]
        if parts and self.unexpected:
            parts.append(f"{_tensors(self.unexpected)} of the source not used")
        return "; ".join(parts) or None


def is_counter(key: str) -> bool:
    """Whether a key is a BatchNorm's counter of batches, which old files lack and no one needs."""
    return key.rpartition(".")[2] == _COUNTER


def _tensors(keys: Sequence[str]) -> str:
    """How many, and which."""
    folded = fold(keys)
    which = ", ".join(map(printable, folded[:_SHOWN]))
    more = f" and {len(folded) - _SHOWN} more lines" if len(folded) > _SHOWN else ""
    return f"{len(keys)} tensor{'s' * (len(keys) != 1)} ({which}{more})"


def printable(name: str) -> str:
    """A name with what could steer a terminal escaped."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in name)
