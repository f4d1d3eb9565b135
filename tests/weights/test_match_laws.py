"""Laws of matching: one verdict a key, whatever was renamed, prefixed, dropped, tied or cut."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import PlanError
from surgery.weights.match import match
from surgery.weights.value import TensorInfo
from surgery.weights.verdicts import Matching

PARTS = st.sampled_from(["a", "b", "c", "0", "1", "module", "model", "_orig_mod", "backbone", "w"])
KEYS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
SHAPES = st.sampled_from([(), (1,), (2,), (2, 3), (3, 2)])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64])
PREFIXES = st.sampled_from(["", "module.", "model.", "net.trunk.", "_orig_mod.module."])


def info(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> TensorInfo:
    return TensorInfo(shape, dtype, 0)


@st.composite
def sides(draw: st.DrawFn) -> dict[str, TensorInfo]:
    """Any set of keys, some of which stand for one tensor."""
    keys = draw(st.lists(KEYS, unique=True, max_size=12))
    infos = {key: info(draw(SHAPES), draw(DTYPES)) for key in keys}
    if len(keys) > 2 and draw(st.booleans()):
        tied = draw(st.lists(st.sampled_from(keys), unique=True, min_size=2, max_size=3))
        mentioned = draw(st.lists(KEYS, unique=True, max_size=1))
        group = [*tied, *(key for key in mentioned if key not in infos)]
        for key in tied:
            others = tuple(other for other in group if other != key)
            infos[key] = replace(infos[tied[0]], aliases=others)
    return infos


@st.composite
def renamings(draw: st.DrawFn, keys: Iterable[str]) -> object:
    rules = st.lists(st.tuples(st.sampled_from([r"^a\.", r"\.w$", "b"]), KEYS), max_size=2)
    chosen = draw(st.sampled_from(["none", "mapping", "rules", "callable"]))
    if chosen == "mapping":
        known = list(keys)
        return draw(st.dictionaries(st.sampled_from(known), KEYS)) if known else {}
    if chosen == "rules":
        return draw(rules)
    if chosen == "callable":
        lost = draw(st.sampled_from(["a", "0", "nothing"]))
        return lambda key: None if lost in key.split(".") else key
    return None


def partitions(matching: Matching, model: Iterable[str], source: Iterable[str]) -> None:
    """Every key has exactly one verdict, and the buckets agree with each other."""
    mismatched = [item.key for item in matching.mismatched]
    converted = [item.key for item in matching.converted]
    buckets = (
        *(matching.loaded, converted, mismatched),
        *(matching.missing, matching.tied, matching.dropped),
    )
    assert Counter(key for bucket in buckets for key in bucket) == Counter([*model])
    assert matching.model_verdicts.keys() == {*model}
    filling = {*matching.pairs.values(), *(item.source for item in matching.mismatched)}
    theirs = (filling, matching.tied_sources, matching.unexpected, matching.dropped_sources)
    assert Counter(key for bucket in theirs for key in bucket) == Counter([*source])
    assert matching.source_verdicts.keys() == {*source}
    assert matching.pairs.keys() == {*matching.loaded, *converted}
    assert {*matching.tied.values()} <= {*matching.pairs, *mismatched}
    assert {*matching.tied_sources.values()} <= filling
    assert {*matching.rivals} <= {*matching.tied_sources}
    assert 0 <= matching.coverage.better <= 1


@given(st.data())
def test_the_buckets_partition_both_sets_of_keys(data: st.DataObject):
    model, source = data.draw(sides()), data.draw(sides())
    prefix = data.draw(PREFIXES)
    if data.draw(st.booleans()):
        extra = {key: item for key, item in model.items() if data.draw(st.integers(0, 3))}
        source = {**source, **{key: replace(item, aliases=()) for key, item in extra.items()}}
    source = {prefix + key: item for key, item in source.items()}
    drop = [*data.draw(st.lists(st.sampled_from([*source, *model]), max_size=2))] if source else []
    dialects = {"other": (("^c", "a"), (r"\.0\.", ".1."))}
    refused = ""
    try:
        matching = match(
            model,
            source,
            dialects=dialects,
            rename=data.draw(renamings(source)),  # type: ignore[arg-type]
            drop=drop,
            min_coverage=0,
        )
    except PlanError as error:
        refused = error.what
    if refused:
        assert refused.startswith(("two keys", "two parts", "the source fits two places"))
        return
    partitions(matching, model, source)
    for key, name in matching.loaded.items():
        assert (model[key].shape, model[key].dtype) == (source[name].shape, source[name].dtype)
    for item in matching.mismatched:
        assert model[item.key].shape != source[item.source].shape


@dataclass(frozen=True)
class Net:
    """Keys as real models have them: a tree, with shapes that say something."""

    keys: tuple[str, ...]

    def side(self) -> dict[str, TensorInfo]:
        return {key: info((place % 5 + 1, 3)) for place, key in enumerate(self.keys)}


LAYERS = st.lists(
    st.sampled_from(
        [f"{stage}.{index}.{kind}" for stage in "abc" for index in range(4) for kind in "wx"]
    ),
    unique=True,
    min_size=6,
).map(lambda keys: Net(tuple(keys)))


@given(LAYERS, PREFIXES, PREFIXES, st.randoms(use_true_random=False))
def test_prefixes_and_wrappers_anywhere_are_undone(
    net: Net, ours: str, theirs: str, chance: random.Random
):
    plain = net.side()

    def wrapped(key: str) -> str:
        parts = key.split(".")
        parts.insert(chance.randrange(len(parts)), chance.choice(["module", "_orig_mod"]))
        return theirs + ".".join(parts)

    names = {key: wrapped(key) for key in plain}
    matching = match(
        {ours + key: item for key, item in plain.items()},
        {names[key]: item for key, item in plain.items()},
    )
    assert matching.pairs == {ours + key: names[key] for key in plain}
    assert matching.coverage.model == matching.coverage.source == 1


@given(LAYERS, st.randoms(use_true_random=False))
def test_the_order_of_the_keys_does_not_matter(net: Net, chance: random.Random):
    plain = net.side()
    shuffled = list(plain)
    chance.shuffle(shuffled)
    source = {f"net.{key}": plain[key] for key in shuffled}
    assert match(plain, source).pairs == {key: f"net.{key}" for key in plain}


class Counted(tuple[int, ...]):
    """A shape that counts how often it is compared or hashed."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        Counted.looks += 1
        return tuple.__ne__(self, other)

    def __hash__(self) -> int:
        Counted.looks += 1
        return tuple.__hash__(self)


def looks(layers: int, prefix: str, found: str) -> int:
    """How often shapes are looked at while a deep model meets a source."""

    def side(head: str, kinds: tuple[str, ...]) -> dict[str, TensorInfo]:
        return {
            f"{head}layers.{layer}.{block}.{kind}": info(Counted((64, 64)))
            for layer in range(layers // 4)
            for block in ("attention", "mlp")
            for kind in kinds
        }

    model, source = side("", ("weight", "bias")), side(prefix, (found, "bias"))
    Counted.looks = 0
    match(model, source, min_coverage=0)
    return Counted.looks


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("", "weight"), ("model.net.", "weight"), ("net.", "gamma"), ("a.b.c.d.e.", "gamma")],
)
def test_the_work_grows_with_the_number_of_keys_and_not_with_its_square(prefix: str, found: str):
    few, many = looks(1_000, prefix, found), looks(10_000, prefix, found)
    assert many < 12 * few
    assert many < 100 * 10_000
