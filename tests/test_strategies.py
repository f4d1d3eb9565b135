"""The hostile models keep their word, and the strategies draw what they say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.graph.example import Example
from tests.strategies import (
    HEADED,
    HEADLESS,
    HOSTILE,
    Classifier,
    Hostile,
    Structure,
    classifiers,
    hostile_models,
    leaves,
    module_trees,
    output_structures,
    rename,
    renameable,
    renamings,
)

every = pytest.mark.parametrize("truth", HOSTILE, ids=str)
headed = pytest.mark.parametrize("truth", HEADED, ids=str)
twinned = pytest.mark.parametrize("truth", [m for m in HEADED if m.has_twin], ids=str)
PROBE = 13


def run(model: nn.Module, given: Any, *, training: bool) -> dict[str, Tensor]:
    """One forward pass from a fixed seed; the output's tensors by path."""
    example = Example.of(given).in_mode(training)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return leaves(model.train(training)(*example.args, **example.kwargs))


def arguments(given: Any) -> dict[str, Tensor]:
    example = Example.of(given)
    return leaves([example.args, example.kwargs])


def fact(model: nn.Module, path: str) -> Any:
    """What an address or attribute path leads to; keys of dicts count as attributes."""

    def step(here: Any, name: str) -> Any:
        return here[name] if isinstance(here, Mapping) else getattr(here, name)

    return reduce(step, path.split("."), model)


def size(value: Any) -> Any:
    """What of a fact has the number of classes: a tensor's shape, a mapping's length, a number."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return len(value) if isinstance(value, Mapping) else value


def heads_of(truth: Hostile) -> dict[str, int]:
    return {**truth.heads, **truth.train_heads}


def owned(model: nn.Module, address: str) -> list[Tensor]:
    found = fact(model, address) if address else model
    return list(found.parameters()) if isinstance(found, nn.Module) else [found]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_there_are_enough_of_them() -> None:
    assert len(HEADED) >= 40
    assert len(HEADLESS) >= 10
    assert len({truth.name for truth in HOSTILE}) == len(HOSTILE)
    assert all(truth.note for truth in HOSTILE)


def test_some_sizes_coincide_with_the_number_of_classes() -> None:
    """Axes cannot be told by size alone: there are twos (the batch) and eights (the features)."""
    numbers = [number for truth in HEADED for number in truth.heads.values()]
    assert min(numbers.count(2), numbers.count(8)) >= 5


@every
def test_building_is_deterministic_and_leaves_the_random_state_alone(truth: Hostile) -> None:
    before = torch.get_rng_state()
    one, two = truth.make(), truth.make()
    first, second = (arguments(truth.example()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one.state_dict(), two.state_dict())
    assert same(first, second)
    assert {tensor.shape[0] for tensor in first.values()} == {2}


@every
@pytest.mark.parametrize("training", [False, True])
def test_it_runs_and_its_class_axes_are_true(truth: Hostile, training: bool) -> None:
    output = run(truth.make(), truth.example(), training=training)
    numbers = {*heads_of(truth).values(), sum(truth.heads.values())}
    for path, axis in truth.outputs_in(training=training).items():
        assert output[path].shape[axis] in numbers
        assert output[path].is_floating_point()


@twinned
@pytest.mark.parametrize("training", [False, True])
def test_a_twin_differs_in_the_class_axes_only(truth: Hostile, training: bool) -> None:
    axes = truth.outputs_in(training=training)
    output = run(truth.make(), truth.example(), training=training)
    twin = run(truth.make(classes=PROBE), truth.example(), training=training)
    for path, tensor in output.items():
        expected = list(tensor.shape)
        if path in axes:
            expected[axes[path]] = PROBE
        assert list(twin[path].shape) == expected, path
    assert output.keys() == twin.keys()


@headed
def test_the_head_owns_a_weight_with_its_number(truth: Hostile) -> None:
    model = truth.make()
    for address, classes in heads_of(truth).items():
        assert any(classes in weight.shape for weight in owned(model, address)), address


@headed
def test_the_class_outputs_come_from_the_heads(truth: Hostile) -> None:
    """Other weights in a head change an output, and every class output changes with some head."""
    changed: dict[bool, set[str]] = {False: set(), True: set()}
    for address in heads_of(truth):
        moved = False
        for training in (False, True):
            model = truth.make()
            before = run(model, truth.example(), training=training)
            model = truth.make()
            with torch.no_grad():
                for weight in owned(model, address):
                    weight.add_(
                        torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) + 1.0
                    )
            after = run(model, truth.example(), training=training)
            differing = {
                path
                for path in truth.outputs_in(training=training)
                if not torch.equal(before[path], after[path])
            }
            changed[training] |= differing
            moved = moved or bool(differing)
        assert moved, address
    for training, paths in changed.items():
        assert paths == set(truth.outputs_in(training=training))


@twinned
def test_what_follows_is_complete(truth: Hostile) -> None:
    """Exactly the heads and what ``follows`` names have another shape in a twin."""
    model, twin = truth.make(), truth.make(classes=PROBE)
    mine, theirs = (
        {**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, twin)
    )
    assert mine.keys() == theirs.keys()
    differing = {name for name in mine if mine[name].shape != theirs[name].shape}
    inside = {
        name
        for name in differing
        if any(address == "" or f"{name}.".startswith(f"{address}.") for address in heads_of(truth))
    }
    tensors = {path for path in truth.follows if isinstance(fact(model, path), Tensor)}
    assert differing - inside == tensors
    for path in truth.follows:
        assert size(fact(model, path)) != size(fact(twin, path)), path


@every
def test_corroboration_is_an_attribute_with_that_number(truth: Hostile) -> None:
    model = truth.make()
    numbers = [fact(model, path) for path in truth.follows]
    told = [number for number in numbers if isinstance(number, int)]
    assert truth.corroborated is bool(told)
    assert set(told) <= set(truth.heads.values())


@pytest.mark.parametrize("truth", HEADLESS, ids=str)
def test_without_a_head_nothing_is_claimed(truth: Hostile) -> None:
    assert not truth.outputs
    assert not truth.corroborated
    model = truth.make()
    for address, width in truth.candidates.items():
        assert any(width in weight.shape for weight in owned(model, address))
    assert len(truth.candidates) == 1 or not truth.replaceable


@settings(max_examples=60)
@given(truth=hostile_models(), data=st.data())
def test_a_renamed_model_computes_the_same(truth: Hostile, data: st.DataObject) -> None:
    model, twin = truth.make(), truth.make()
    mapping = data.draw(renamings(model))
    assert set(mapping) == set(renameable(model))
    tensors = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    moved = rename(model, mapping)
    after = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    assert {moved[name]: key for name, key in tensors.items()} == after
    assert set(renameable(model)) == set(mapping.values())
    for training in (False, True):
        one, two = (run(m, truth.example(), training=training) for m in (model, twin))
        assert same(one, two)


def test_rename_refuses_names_in_use() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    for mapping in ({"0": "1"}, {"0": "forward"}, {"0": "x", "1": "x"}):
        with pytest.raises(ValueError, match="unused"):
            rename(model, mapping)
    assert rename(model, {"0": "fc"}) == {
        "": "",
        "0": "fc",
        "0.weight": "fc.weight",
        "0.bias": "fc.bias",
        "1": "1",
    }


@settings(max_examples=60)
@given(tree=module_trees())
def test_drawn_trees_can_be_walked(tree: nn.Module) -> None:
    assert all(isinstance(module, nn.Module) for module in tree.modules())
    numbers = [parameter.numel() for parameter in tree.parameters()]
    assert len(numbers) <= len(list(tree.named_parameters(remove_duplicate=False)))
    tree.load_state_dict(tree.state_dict())


def test_drawn_trees_share_tie_and_freeze() -> None:
    """Each of the things that make a tree hard does turn up."""
    seen: set[str] = set()

    @settings(max_examples=150, database=None, derandomize=True)
    @given(tree=module_trees())
    def look(tree: nn.Module) -> None:
        modules = list(tree.named_modules(remove_duplicate=False))
        parameters = list(tree.named_parameters(remove_duplicate=False))
        if len({id(module) for _, module in modules}) < len(modules):
            seen.add("shared module")
        slots = [id(p) for m in tree.modules() for p in m._parameters.values() if p is not None]
        if len(set(slots)) < len(slots):
            seen.add("tied parameter")
        if {p.requires_grad for _, p in parameters} == {True, False}:
            seen.add("partly frozen")
        if len({p.dtype for _, p in parameters}) > 1:
            seen.add("mixed dtypes")

    look()
    assert seen == {"shared module", "tied parameter", "partly frozen", "mixed dtypes"}


@settings(max_examples=100)
@given(structure=output_structures())
def test_paths_of_drawn_structures(structure: Structure) -> None:
    made: dict[str, Tensor] = {}

    def make(path: str) -> Tensor:
        return made.setdefault(path, torch.zeros(len(made)))

    packed = structure.pack(make)
    found = leaves(packed)
    assert tuple(found) == structure.paths() == tuple(made)
    assert len(found) >= 1
    assert all(found[path] is made[path] for path in made)


@settings(max_examples=60)
@given(drawn=classifiers())
def test_drawn_classifiers_keep_their_word(drawn: Classifier) -> None:
    model, example, truth = drawn
    twin = truth.make(classes=PROBE)
    for training in (False, True):
        output = run(model, example, training=training)
        other = run(twin, example, training=training)
        assert output.keys() == truth.outputs.keys()
        for path, axis in truth.outputs.items():
            expected = list(output[path].shape)
            assert expected[axis] == next(iter(truth.heads.values()))
            expected[axis] = PROBE
            assert list(other[path].shape) == expected
    assert all(size(fact(model, p)) != size(fact(twin, p)) for p in truth.follows)
