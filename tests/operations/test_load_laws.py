"""Laws of loading, over random models, names, wrappers and sources."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import surgery
from surgery.errors import CoverageError, PartialLoadWarning, PlanError
from surgery.families.registry import Registry
from surgery.operations import history
from surgery.operations.plan import Outcome
from surgery.weights import Weights, read
from tests.operations.faults import events_of, fails_at
from tests.operations.state import differences, state_of
from tests.weights.test_match_laws import PREFIXES

NOBODY = Registry.of()


def load(model: nn.Module, source: object, **options: object) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartialLoadWarning)
        return surgery.load_weights(model, source, registry=NOBODY, **options)


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    """A stack of layers, some of them the same, some tied, some norms, in one of two dtypes."""
    torch.manual_seed(draw(st.integers(0, 9)))
    kinds = draw(st.lists(st.sampled_from(["linear", "norm", "embed", "again"]), min_size=1))
    layers: list[nn.Module] = []
    for kind in kinds[:6]:
        if kind == "again" and layers:
            layers.append(layers[0])
        elif kind == "norm":
            layers.append(nn.BatchNorm1d(3))
        elif kind == "embed":
            layers.append(nn.Embedding(3, 3))
        else:
            layers.append(nn.Linear(3, 3))
    net = nn.Sequential(*layers)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) > 1 and draw(st.booleans()):
        linear[-1].weight = linear[0].weight
    return net.to(draw(st.sampled_from([torch.float32, torch.float64])))


@given(nets(), PREFIXES, st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_models_own_state_is_the_identity(net: nn.Module, prefix: str, copied: bool):
    own = net.state_dict()
    source = {prefix + k: v.clone() if copied else v for k, v in own.items()}
    before = {key: value.clone() for key, value in own.items()}
    ids = {key: id(value) for key, value in net.state_dict(keep_vars=True).items()}
    outcome = load(net, source)
    assert ids == {key: id(value) for key, value in net.state_dict(keep_vars=True).items()}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    matching = outcome.plan.matching
    assert matching is not None
    assert not matching.missing
    assert not matching.unexpected


@given(nets(), st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_undo_is_the_identity_and_the_buckets_partition(
    net: nn.Module, assign: bool, data: st.DataObject
):
    keys = list(net.state_dict())
    kept = data.draw(st.sets(st.sampled_from(keys), min_size=1))
    wide = data.draw(st.sets(st.sampled_from(sorted(kept))))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    source = {
        key: torch.cat([value, value]).to(dtype) if key in wide and value.dim() else value * 2
        for key, value in net.state_dict().items()
        if key in kept
    }
    before = state_of(net, process=False)
    try:
        outcome = load(net, source, assign=assign, min_coverage=0)
    except PlanError:
        # Two different tensors for a tied one.
        assert not differences(before, state_of(net, process=False))
        return
    matching = outcome.plan.matching
    assert matching is not None
    assert {*matching.model_verdicts} == {*keys}
    assert {*matching.source_verdicts} == {*source}
    outcome.undo()
    # Autograd is told that values moved, there and back.
    after = {path: v for path, v in state_of(net, process=False).items() if "version" not in path}
    assert not differences({path: before[path] for path in after}, after)


@given(nets(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_reader_that_fails_at_any_tensor_leaves_the_model_as_it_was(
    net: nn.Module, data: st.DataObject
):
    source = read({key: value + 1 for key, value in net.state_dict().items()})
    failing = data.draw(st.integers(0, len(source.tensors) - 1))
    broken = Weights("broken", "dict", source.tensors, {}, None, (), _Failing(source, failing))
    before = state_of(net, process=False)
    standing = list(history.standing())
    try:
        load(net, broken)
    except OSError:
        assert standing == history.standing()
        assert not differences(before, state_of(net, process=False))
    except PlanError:
        assert not differences(before, state_of(net, process=False))


class _Failing:
    """A store that raises at the nth tensor."""

    def __init__(self, source: Weights, at: int) -> None:
        self.source = source
        self.at = at

    def read(self, name: str) -> torch.Tensor:
        return self.source.read(name)

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for place, each in enumerate(self.source.read_many(names)):
            if place == self.at:
                raise OSError("the disk is gone")
            yield each


def shards(folder: Path, net: nn.Module) -> Path:
    """A model in two safetensors files with an index."""
    import json

    state = list(net.state_dict().items())
    half = len(state) // 2
    table = {}
    for number, part in enumerate((state[:half], state[half:])):
        name = f"part-{number}.safetensors"
        save_file({key: value + 1 for key, value in part}, folder / name)
        table.update({key: name for key, _ in part})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return index


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_corrupt_last_shard_leaves_the_model_as_it_was(tmp_path: Path, when: str, assign: bool):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    index = shards(tmp_path, net)
    last = tmp_path / "part-1.safetensors"
    whole = last.read_bytes()
    before = state_of(net, process=False)

    def loading(source: object) -> None:
        load(net, source, assign=assign)

    if when == "before":
        last.write_bytes(whole[:-5])
        source: object = index
    else:
        source = read(index)
        last.write_bytes(whole[:-5])
    with pytest.raises(surgery.errors.WeightsError):
        loading(source)
    assert not differences(before, state_of(net, process=False))
    last.write_bytes(whole)
    loading(index)
    assert differences(before, state_of(net, process=False))


def test_a_fault_anywhere_in_doing_or_undoing_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(history, "_standing", [])
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    source = {key: value + 1 for key, value in copy.deepcopy(net).state_dict().items()}

    def everything() -> dict[str, object]:
        return state_of(net, source, history.standing())

    writing = ("apply", "undoing", "journal", "content", "load", "incoming")
    events = [
        event
        for event in events_of(lambda: load(net, source).undo())
        if (event.kind, event.count) == ("line", 1) and event.where.split(".py")[0] in writing
    ]
    assert events
    for event in events:
        before = everything()
        made: list[Outcome] = []
        if fails_at(event, lambda made=made: made.append(load(net, source))):
            assert not differences(before, everything()), event
            continue
        done = everything()
        if fails_at(event, made[0].undo):
            assert not differences(done, everything()), event
        if not made[0].operated.over:
            made[0].undo()


def test_nonsense_is_refused_whatever_the_names():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(CoverageError):
        load(net, {f"layer{n}.w": torch.zeros(n + 1) for n in range(5)})
