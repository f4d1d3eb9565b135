"""What stands between two sets of names: wrappers left in the keys, and a prefix on either side.

Tensors are compared by name and shape. Nothing here grows with the product of the two sides: a
prefix is voted for by the names that end alike, found in a table, and only the few with the most
votes are tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from surgery.weights.value import TensorInfo
from surgery.wrappers import WRAPPERS

# What wrappers put into a key, wherever they stood.
WRAPPED = frozenset(wrapper.attribute for wrapper in WRAPPERS.values())
# What training code likes to call the model that it holds. A model may use these names itself.
HOLDERS = frozenset({"model", "backbone"})

_LEVELS = (frozenset[str](), WRAPPED, WRAPPED | HOLDERS)
# With several ways that match as much, the gentlest: by level, first without a prefix, then with.
_RANKS = ((0, 2), (1, 3), (4, 5))
# An ending that more tensors of one shape share says nothing about where it belongs.
_SHARED = 4
_TRIED = 8


@dataclass(frozen=True)
class Rewriting:
    """How the names of a source become names of a model.

    Attributes:
        ignored: components that do not count, wherever they stand, on both sides.
        source_prefix: what is taken off the source's names, its dot included; ``""`` for nothing.
        model_prefix: what stands before them in the model, its dot included.
    """

    ignored: frozenset[str] = frozenset()
    source_prefix: str = ""
    model_prefix: str = ""

    @property
    def prefixed(self) -> bool:
        """Whether a prefix is taken off or put on."""
        return bool(self.source_prefix or self.model_prefix)


@dataclass(frozen=True)
class Found:
    """The way that lets most tensors match.

    Attributes:
        rewriting: the way.
        matched: how many tensors it brings together, by name and shape.
        named: how many it brings together by name alone.
        near: how many of these have a shape, of two sizes at least, that is the same but for one:
            the layer of classes of another data set.
        rival: another that matches as many, but different ones; None where it is clear.
    """

    rewriting: Rewriting
    matched: int
    named: int
    near: int
    rival: Rewriting | None = None


# By name, the key and the shape; names that several keys share are left out.
_Side: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
_Pairs: TypeAlias = dict[str, str]
_Candidate: TypeAlias = tuple[int, Rewriting, _Pairs]


def strip(name: str, ignored: frozenset[str]) -> str:
    """A dotted name without the components that do not count.

    The last one is the tensor's own name and always stays.

    Example:
        >>> strip("module.layer1._orig_mod.conv.weight", WRAPPED)
        'layer1.conv.weight'
    """
    *path, last = name.split(".")
    if ignored.isdisjoint(path):
        return name
    return ".".join([*(part for part in path if part not in ignored), last])


def find_rewriting(
    names: Mapping[str, str], source: Mapping[str, TensorInfo], model: Mapping[str, TensorInfo]
) -> Found:
    """Find the wrappers and the pair of prefixes that let most tensors match by name and shape.

    Args:
        names: the source's keys, and the names by which they go.
        source: shapes by key of the source.
        model: shapes by key of the model.

    Returns:
        The way. Where several match as many, the one that changes least.

    Example:
        >>> import torch
        >>> from surgery.weights.memory import describe
        >>> layer = describe(torch.nn.Linear(3, 2).state_dict())
        >>> names = {key: f"net.fc.{key}" for key in layer}
        >>> find_rewriting(names, layer, layer).rewriting.source_prefix
        'net.fc.'
    """
    candidates: list[_Candidate] = []

    def complete(candidate: _Candidate) -> bool:
        return len(candidate[2]) in (len(names), len(model))

    previous: tuple[list[str], list[str]] | None = None
    for ignored, (plain_rank, prefix_rank) in zip(_LEVELS, _RANKS, strict=True):
        left_names = [strip(name, ignored) for name in names.values()]
        right_names = [strip(name, ignored) for name in model]
        if (left_names, right_names) == previous:
            continue
        previous = left_names, right_names
        left, right = _side(names, left_names, source), _side(model, right_names, model)
        candidates.append((plain_rank, Rewriting(ignored), _pairs(left, right, "", "")))
        if not complete(candidates[-1]):
            for prefix, place in _voted(left, right):
                way = Rewriting(ignored, prefix, place)
                candidates.append((prefix_rank, way, _pairs(left, right, prefix, place)))
        if any(map(complete, candidates)):
            break
    rank, best, pairs = max(candidates, key=lambda item: (len(item[2]), -item[0], -_depth(item[1])))
    rivals = (
        other
        for other_rank, other, others in candidates
        if other_rank == rank and len(others) == len(pairs) and _conflict(pairs, others)
    )
    rival = next(rivals, None) if best.prefixed and pairs else None
    shapes = _together(names, source, model, best)
    return Found(best, len(pairs), len(shapes), sum(_near(*both) for both in shapes), rival)


def leading(names: Mapping[str, str]) -> tuple[str, ...]:
    """The prefixes that most names begin with, the shortest first, ``""`` among them.

    Example:
        >>> leading({"a": "model.net.x", "b": "model.net.y", "c": "loss"})
        ('', 'model.', 'model.net.')
    """
    found = [""]
    inside = list(names.values())
    most = len(inside) / 2
    while len(found) < 4:
        start = len(found[-1])
        heads = Counter(name[start:].partition(".")[0] for name in inside if "." in name[start:])
        head, count = heads.most_common(1)[0] if heads else ("", 0)
        if count <= most:
            break
        found.append(f"{found[-1]}{head}.")
        inside = [name for name in inside if name.startswith(found[-1])]
    return tuple(found)


def _side(
    keys: Mapping[str, object], stripped: list[str], tensors: Mapping[str, TensorInfo]
) -> _Side:
    several = {name for name, count in Counter(stripped).items() if count > 1}
    return {
        name: (key, tuple(tensors[key].shape))
        for key, name in zip(keys, stripped, strict=True)
        if name not in several
    }


def _pairs(left: _Side, right: _Side, prefix: str, place: str) -> _Pairs:
    """The model's keys and the source's that come together with these prefixes."""
    found = {}
    for name, (key, shape) in left.items():
        if name.startswith(prefix):
            other = right.get(place + name[len(prefix) :])
            if other is not None and other[1] == shape:
                found[other[0]] = key
    return found


def _together(
    names: Mapping[str, str],
    source: Mapping[str, TensorInfo],
    model: Mapping[str, TensorInfo],
    way: Rewriting,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes on both sides of all that comes together by name."""
    shapes = {strip(key, way.ignored): info.shape for key, info in model.items()}
    found = []
    for key, name in names.items():
        bare = strip(name, way.ignored)
        shape = shapes.get(bare)
        if shape is None and bare.startswith(way.source_prefix):
            shape = shapes.get(way.model_prefix + bare[len(way.source_prefix) :])
        if shape is not None:
            found.append((source[key].shape, shape))
    return found


def _near(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) > 1 and sum(map(int.__ne__, left, right)) <= 1


def _voted(left: _Side, right: _Side) -> Iterator[tuple[str, str]]:
    """The pairs of prefixes that most names which end alike would need."""
    places: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, (_, shape) in right.items():
        for prefix, ending in _cuts(name):
            found = places.setdefault((ending, shape), [])
            if len(found) <= _SHARED:
                found.append(prefix)
    votes: Counter[tuple[str, str]] = Counter()
    for name, (_, shape) in left.items():
        for prefix, ending in _cuts(name):
            known = places.get((ending, shape))
            if known is not None:
                if len(known) <= _SHARED:
                    votes.update((prefix, place) for place in known)
                break
    del votes[("", "")]
    best = votes.most_common(_TRIED)
    # A vote is a tensor that would match, so that far fewer votes win nothing.
    return (pair for pair, count in best if 2 * count > best[0][1])


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name cut before each of its components, the longest ending first."""
    start = 0
    while True:
        yield name[:start], name[start:]
        start = name.find(".", start) + 1
        if not start:
            return


def _depth(way: Rewriting) -> int:
    return way.source_prefix.count(".") + way.model_prefix.count(".")


def _conflict(pairs: _Pairs, others: _Pairs) -> bool:
    """Whether two ways give one tensor two partners, on either side."""
    if any(others.get(key, partner) != partner for key, partner in pairs.items()):
        return True
    places = {partner: key for key, partner in pairs.items()}
    return any(places.get(partner, key) != key for key, partner in others.items())
