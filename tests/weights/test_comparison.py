"""Two models or checkpoints compared: every tensor in one bucket, and values measured rightly."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision.models import densenet121, resnet18

import surgery
from surgery.errors import ArgumentError, PlanError, WeightsError
from surgery.families import Family
from surgery.families.registry import Registry
from surgery.weights import read
from surgery.weights.comparison import Compared, Difference
from surgery.weights.distance import distance
from surgery.weights.memory import describe
from surgery.weights.value import Weights

NONE = Registry.of()
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
WIDE = [torch.uint16, torch.uint32, torch.uint64]
SMALL = [torch.float8_e4m3fn, torch.float8_e5m2]
COMPLEX = [torch.complex64, torch.complex128]


def names(pairs: tuple[Compared, ...]) -> list[str]:
    return [each.name for each in pairs]


def diff(a: object, b: object, **options: object) -> Difference:
    return surgery.diff(a, b, registry=NONE, **options)


def buckets_partition(found: Difference, a: object, b: object) -> None:
    """Every name of either side is in one bucket."""
    assert sorted([*found.removed, *names(found.pairs)]) == sorted(a)
    assert sorted([*found.added, *(each.other for each in found.pairs)]) == sorted(b)


def turned(found: Difference) -> Difference:
    """The difference as it would be the other way round, without what is measured against a."""
    pairs = {
        bucket: {(each.other, each.name, each.shapes[::-1], each.dtypes[::-1]) for each in pairs}
        for bucket, pairs in buckets(found).items()
    }
    return {**pairs, "removed": {*found.added}, "added": {*found.removed}}


def buckets(found: Difference) -> dict[str, tuple[Compared, ...]]:
    kinds = ("reshaped", "converted", "changed", "close", "equal")
    return {kind: getattr(found, kind) for kind in kinds}


KEYS = st.sampled_from(["a.w", "a.b", "b.w", "b.0.w", "b.1.w", "c", "module.c", "model.a.w"])
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.sampled_from([(), (2,), (2, 3), (0, 2)]),
    st.sampled_from([torch.float32, torch.float16, torch.int64]),
    st.sampled_from([0.0, 1.0, 2.5, math.nan, math.inf]),
)
STATES = st.dictionaries(KEYS, TENSORS, min_size=1, max_size=6)


@given(STATES, STATES, st.booleans())
def test_every_tensor_is_in_one_bucket(a, b, values):
    found = diff(a, b, values=values)
    buckets_partition(found, a, b)
    assert all((each.distance is not None) == values for each in found.changed + found.equal)
    for pairs in buckets(found).values():
        assert all(
            a[p.name].shape == p.shapes[0] and b[p.other].dtype == p.dtypes[1] for p in pairs
        )


@given(STATES, STATES)
def test_the_other_way_round_the_same_is_found(a, b):
    there, back = (diff(*both, exact_names=True) for both in ((a, b), (b, a)))
    plain = {
        **{k: {(e.name, e.other, e.shapes, e.dtypes) for e in v} for k, v in buckets(back).items()}
    }
    assert turned(there) == {**plain, "removed": {*back.removed}, "added": {*back.added}}
    assert there.distance.largest == back.distance.largest


@given(STATES)
def test_a_source_equals_itself_and_its_copy(state):
    copy = {key: value.clone() for key, value in state.items()}
    for other in (state, copy):
        found = diff(state, other)
        assert found.same
        assert names(found.equal) == [*state]
        assert not found.tied


@given(STATES, st.sampled_from(["module.", "model.", "_orig_mod.module.", "net.trunk."]))
def test_wrappers_are_undone_and_what_was_renamed_is_said(state, prefix):
    state = {f"x.{key}": value for key, value in state.items() if value.numel()}
    if not state:
        return
    wrapped = {prefix + key: value.clone() for key, value in state.items()}
    for found in (diff(state, wrapped), diff(wrapped, state)):
        assert found.same
        assert len(found.renamed) == len(state)
        assert any("names matched with" in note for note in found.notes)
    assert diff(state, wrapped).renamed == {key: prefix + key for key in state}
    exact = diff(state, wrapped, exact_names=True)
    assert (exact.removed, exact.added) == (tuple(state), tuple(wrapped))


def test_two_networks_with_nothing_in_common_are_not_paired_by_guesswork():
    found = diff({"a.w": torch.ones(2, 3), "a.v": torch.ones(4)}, {"b.w": torch.ones(9, 9)})
    assert (found.removed, found.added) == (("a.w", "a.v"), ("b.w",))


def test_two_ways_to_match_leave_equal_names_and_say_so():
    layer = nn.Linear(3, 2).state_dict()
    two = {
        f"{side}.{key}": value for side in ("student", "teacher") for key, value in layer.items()
    }
    found = diff(layer, two)
    assert len(found.added) == 4
    assert any("only equal names" in note for note in found.notes)


def test_a_rename_leads_the_second_sources_names_to_the_firsts():
    a = {"stem.w": torch.ones(2), "head.w": torch.ones(3)}
    b = {"features.w": torch.ones(2), "head.w": torch.ones(3)}
    for rename in ({"features.w": "stem.w"}, [(r"^features\.", "stem.")]):
        found = diff(a, b, rename=rename)
        assert found.same
        assert found.renamed == {"stem.w": "features.w"}
    assert diff(a, b, rename={"head.w": None}).added[-1] == "head.w"
    with pytest.raises(PlanError):
        diff(a, b, rename=lambda key: "stem.w")


def test_the_dialect_of_a_family_leads_to_its_names_on_either_side():
    family = Family(
        name="dense",
        classes=("torchvision.models.densenet.DenseNet",),
        renames={"old": ((r"\.(norm|conv)\.(\d)\.", r".\1\2."),)},
    )
    with torch.device("meta"):
        model = densenet121()
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv1.", ".conv.1."): value
        for key, value in model.state_dict().items()
    }
    registry = Registry.of(family)
    for a, b in ((model, old), (old, model)):
        found = surgery.diff(a, b, values=False, registry=registry)
        assert not found.removed + found.added
        assert len(found.renamed) > 200
        assert any("'old'" in note for note in found.notes)


def test_a_fine_tuned_network_shows_its_layers_and_its_new_head():
    model = resnet18()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["layer4.1.conv2.weight"][3, 5, 1, 2] += 0.25
    state["bn1.num_batches_tracked"] += 7
    state |= {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}
    found = diff(model, state)
    assert not found.same
    assert names(found.reshaped) == ["fc.weight", "fc.bias"]
    assert found.reshaped[0].shapes == ((1000, 512), (5, 512))
    assert names(found.changed) == ["bn1.num_batches_tracked", "layer4.1.conv2.weight"]
    counter, kernel = (each.distance for each in found.changed)
    assert (counter.largest, counter.changed, counter.relative) == (7, 1, None)
    assert (kernel.changed, kernel.elements) == (1, 512 * 512 * 9)
    assert kernel.largest == pytest.approx(0.25, rel=1e-6)
    weight = model.layer4[1].conv2.weight.detach().double()
    assert kernel.norm == pytest.approx(float(weight.norm()))
    assert kernel.relative == pytest.approx(kernel.difference / float(weight.norm()))
    assert len(found.equal) == 122 - 4


def test_another_dtype_is_told_with_what_was_lost():
    state = {"w": torch.tensor([1.0, 1 / 3]), "whole": torch.ones(2)}
    found = diff(state, {key: value.half() for key, value in state.items()})
    assert names(found.converted) == ["w", "whole"]
    assert [each.distance.apart for each in found.converted] == [1, 0]
    assert found.converted[0].dtypes == (torch.float32, torch.float16)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *WIDE, *SMALL, *COMPLEX], ids=str)
def test_one_element_is_found_in_every_dtype(dtype):
    one = torch.ones(9, dtype=torch.float32).to(dtype)
    other = torch.tensor([1.0] * 5 + [0.0] + [1.0] * 3).to(dtype)
    assert distance(one, one.clone()).apart == 0
    found = distance(one, other)
    assert (found.changed, found.largest, found.difference, found.norm) == (1, 1, 1.0, 3.0)


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(INT64, INT64), min_size=1, max_size=6))
def test_integers_are_compared_exactly(pairs):
    one, other = (torch.tensor(side, dtype=torch.int64) for side in zip(*pairs, strict=True))
    found = distance(one, other)
    assert found.largest == max(abs(x - y) for x, y in pairs)
    assert found.changed == sum(x != y for x, y in pairs)
    shifted = [t ^ -(2**63) for t in (one, other)]
    assert distance(*(t.view(torch.uint64) for t in shifted)).largest == found.largest
    exact = math.sqrt(sum((x - y) ** 2 for x, y in pairs))
    assert found.difference == pytest.approx(exact)


NUMBERS = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8), st.sampled_from([0.0, 0.5]))
def test_floats_are_compared_as_python_does(pairs, atol):
    one, other = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    found = distance(one, other, atol=atol)
    same = [x == y or (math.isnan(x) and math.isnan(y)) for x, y in pairs]
    gaps = [abs(x - y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    close = [math.isfinite(x) and math.isfinite(y) and abs(x - y) <= atol for x, y in pairs]
    assert found.apart == same.count(False)
    assert found.changed == sum(not (s or c) for s, c in zip(same, close, strict=True))
    assert found.largest == max(gaps, default=0)
    assert found.nonfinite == tuple(
        sum(not math.isfinite(x) for x in side) for side in zip(*pairs, strict=True)
    )
    assert found.difference == pytest.approx(math.hypot(*gaps), rel=1e-9, abs=0)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_norms_neither_overflow_nor_vanish(scale):
    one = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    found = distance(one, torch.zeros(2, dtype=torch.float64))
    assert found.norm == found.difference == pytest.approx(5 * scale)
    assert found.relative == pytest.approx(1.0)


def test_slices_add_up_wherever_the_difference_lies():
    one = torch.randn(3 * 2**18 + 7, generator=torch.Generator().manual_seed(0))
    for place in (0, 2**18, one.numel() - 1):
        other = one.clone()
        other[place] += 1
        found = distance(one, other)
        assert (found.changed, found.elements) == (1, one.numel())
        assert found.norm == pytest.approx(float(one.double().norm()))


def test_layouts_of_memory_do_not_matter():
    one = torch.randn(4, 3, 5, 5)
    other = one.to(memory_format=torch.channels_last)
    assert distance(one, other).apart == distance(other, other.clone()).apart == 0
    assert distance(one.transpose(0, 1), other.transpose(0, 1).contiguous()).apart == 0
    assert distance(one[:, 1:], other[:, 1:] + 1).changed == one[:, 1:].numel()
    turned = torch.view_as_complex(torch.randn(4, 2)).conj()
    assert distance(turned, turned.resolve_conj()).apart == 0
    assert distance(turned, turned.conj()).changed == 4
    sparse = torch.eye(3).to_sparse()
    assert distance(sparse, sparse * 2).changed == 3


def test_a_tolerance_is_for_floating_numbers():
    a = {"w": torch.tensor([1.0, 100.0]), "n": torch.tensor([1])}
    b = {"w": torch.tensor([1.05, 100.0]), "n": torch.tensor([2])}
    found = diff(a, b, tolerance=0.1)
    assert (names(found.close), names(found.changed)) == (["w"], ["n"])
    assert names(diff(a, b, tolerance=(0.01, 0.0)).changed) == ["w", "n"]
    assert names(diff(a, b, tolerance=(0.0, 0.06)).close) == ["w"]
    assert diff({"w": a["w"]}, {"w": b["w"]}, tolerance=0.1).same


def test_ties_on_one_side_only_are_told():
    weight = torch.ones(2, 2)
    tied = {"a": weight, "b": weight, "c": torch.zeros(1)}
    apart = {key: value.clone() for key, value in tied.items()}
    assert diff(tied, apart).tied == (("a", ("a", "b")),)
    assert diff(apart, tied).tied == (("b", ("a", "b")),)
    assert diff(tied, dict(tied)).tied == ()
    assert not diff(tied, apart).same


def test_a_name_that_a_file_only_mentions_goes_with_its_tensor(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

    model = Tied()
    saved = surgery.save(model, tmp_path / "model.safetensors")
    found = diff(model, saved.path)
    assert found.same
    assert names(found.equal) == ["one.weight", "two.weight"]
    assert not found.renamed


def test_metadata_is_compared_where_it_says_the_same_sort_of_thing(tmp_path):
    state = {"w": torch.ones(2)}
    for name, metadata in (("a", {"format": "pt", "epoch": "3"}), ("b", {"format": "pt"})):
        save_file(state, tmp_path / f"{name}.safetensors", metadata)
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert found.metadata == (("epoch", "3", None),)
    assert found.same
    model = nn.BatchNorm1d(2)
    old = model.state_dict()
    old._metadata = {"": {"version": 1}}
    assert diff(model, old).metadata == (("", "2", "1"),)
    assert diff(model, dict(model.state_dict())).metadata == ()


@pytest.mark.parametrize("mmap", [False, True])
def test_files_of_two_formats_are_compared(tmp_path, mmap):
    state = nn.Linear(4, 3).state_dict()
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "a.pth")
    state["bias"] = state["bias"] + 1
    save_file(state, tmp_path / "b.safetensors")
    found = diff(tmp_path / "a.pth", str(tmp_path / "b.safetensors"), mmap=mmap)
    assert (names(found.equal), names(found.changed)) == (["weight"], ["bias"])
    assert any(note.startswith("a: beside 'state_dict'") for note in found.notes)


@dataclass
class Counting:
    """A store that knows which of its tensors are alive when another is read."""

    tensors: dict[str, torch.Tensor]
    alive: list[weakref.ref] = field(default_factory=list)
    most: list[int] = field(default_factory=lambda: [0])
    read_names: list[str] = field(default_factory=list)

    def read(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name].clone()
        self.read_names.append(name)
        self.alive.append(weakref.ref(tensor))
        self.most[0] = max(self.most[0], sum(ref() is not None for ref in self.alive))
        return tensor

    def read_many(self, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        raise NotImplementedError


def counted(state: dict[str, torch.Tensor], shared: Counting | None = None) -> Weights:
    store = Counting(state)
    if shared is not None:
        store.alive, store.most = shared.alive, shared.most
    return Weights("counted", "counted", describe(state), {}, None, (), store)


def test_one_pair_is_in_memory_at_a_time_and_each_tensor_is_read_once():
    state = {f"layer.{i}.w": torch.full((4,), float(i)) for i in range(6)}
    state["tied"] = state["layer.0.w"]
    one = counted(state)
    other = counted({**state, "layer.3.w": torch.zeros(4), "other": torch.zeros(9)}, one._store)
    found = diff(one, other)
    assert names(found.changed) == ["layer.3.w"]
    assert one._store.most == [2]
    assert sorted(one._store.read_names) == sorted(key for key in state if key != "tied")
    assert "other" not in other._store.read_names


def test_without_values_nothing_is_read():
    state = {"w": torch.ones(4), "b": torch.ones(3)}
    one, other = counted(state), counted({"w": torch.zeros(4), "b": torch.ones(2)})
    found = diff(one, other, values=False)
    assert (names(found.equal), names(found.reshaped)) == (["w"], ["b"])
    assert one._store.read_names == other._store.read_names == []


def test_equal_bytes_are_not_computed_with(monkeypatch):
    def refused(*_: object) -> None:
        raise AssertionError("computed with equal values")

    monkeypatch.setattr("surgery.weights.distance._wide", refused)
    state = nn.Linear(4, 3).state_dict()
    assert diff(state, {key: value.clone() for key, value in state.items()}).same
    with pytest.raises(AssertionError, match="computed"):
        diff(state, {key: value + 1 for key, value in state.items()})


def test_a_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {key: (value.data_ptr(), value._version) for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    diff(model, {key: value.clone() + 1 for key, value in model.state_dict().items()})
    now = {key: (value.data_ptr(), value._version) for key, value in model.state_dict().items()}
    assert now == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": (1, 2, 3)}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"tolerance": True}, "tolerance"),
        ({"rename": {}, "exact_names": True}, "exact_names, rename"),
        ({"rename": 3}, "rename"),
    ],
    ids=["negative", "three", "nan", "bool", "both", "rename"],
)
def test_a_wrong_argument_is_named(options, where):
    with pytest.raises(ArgumentError) as caught:
        diff({"w": torch.ones(1)}, {"w": torch.ones(1)}, **options)
    assert caught.value.where == where
    assert caught.value.fix


def test_what_has_no_values_is_compared_without_them():
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    with pytest.raises(ArgumentError, match="meta") as caught:
        diff(nn.Linear(3, 2), model)
    assert caught.value.where == "b: weight"
    assert "values=False" in caught.value.fix
    assert diff(nn.Linear(3, 2), model, values=False).same


def test_a_source_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(WeightsError):
        diff(tmp_path / "none.pth", {"w": torch.ones(1)})
    assert read({"w": torch.ones(1)}).tensors


def test_progress_is_told_before_every_pair():
    told: list[tuple[str, int, int]] = []
    state = {"a": torch.zeros(2), "b": torch.ones(3), "only here": torch.zeros(1)}
    other = {"a": torch.zeros(2), "b": torch.zeros(3)}
    surgery.diff(state, other, progress=lambda *args: told.append(args))
    assert told == [("a", 0, 2), ("b", 1, 2)]
