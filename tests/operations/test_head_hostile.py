"""Heads are replaced in models that nobody has seen, or refused, and nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgery.errors import SurgeryError, UncorroboratedWarning
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.heads import find_heads
from surgery.operations.head import replace_head
from surgery.operations.plan import Outcome
from tests.hostile_unseen import UNSEEN
from tests.operations.state import differences, state_of
from tests.strategies import HOSTILE, Classifier, Hostile, classifiers, leaves
from tests.test_strategies import fact

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

NO_PLUGINS = Registry.of()
MODELS = (*HOSTILE, *UNSEEN.values())
every = pytest.mark.parametrize("truth", MODELS, ids=str)
replaceable = [m for m in MODELS if m.replaceable and m.heads]
headed = pytest.mark.parametrize("truth", replaceable, ids=str)
twins = pytest.mark.parametrize("truth", [m for m in replaceable if m.has_twin], ids=str)


def replaced(model: nn.Module, classes: int, example: Any, **options: Any) -> Outcome:
    return replace_head(model, classes, example=example, registry=NO_PLUGINS, **options)


def run(model: nn.Module, example: Any, *, training: bool = False) -> dict[str, Tensor]:
    """The real outputs, every random number the same each time."""
    given = Example.of(example)
    modes = {module: module.training for module in model.modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train(training)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return leaves(model(*given.args, **given.kwargs))
    finally:
        model.load_state_dict(state)
        for module, mode in modes.items():
            module.training = mode


@every
def test_a_head_is_replaced_and_put_back_or_nothing_is_touched(truth: Hostile) -> None:
    model, example = truth.make(), truth.example()
    before = state_of(model, example)
    if not truth.replaceable:
        with pytest.raises(SurgeryError) as raised:
            replaced(model, 7, example)
        assert raised.value.where
        assert raised.value.fix
    else:
        outcome = replaced(model, 7, example)
        assert outcome.checks
        assert all(check.passed for check in outcome.checks)
        outcome.undo()
    assert not differences(before, state_of(model, example))


@headed
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_real_outputs_have_the_asked_class_axis(truth: Hostile, training: bool) -> None:
    model, example = truth.make(), truth.example()
    before = run(model, example, training=training)
    replaced(model, 7, example)
    after = run(model, example, training=training)
    axes = truth.outputs_in(training=training)
    assert list(after) == list(before)
    for path, old in before.items():
        shape = list(old.shape)
        if path in axes:
            shape[axes[path]] = 7
        assert list(after[path].shape) == shape, path
        assert after[path].dtype == old.dtype


@twins
@pytest.mark.parametrize("classes", [1, 2, 8])
def test_the_model_becomes_what_its_constructor_would_have_made(
    truth: Hostile, classes: int
) -> None:
    """Numbers of one, of the batch and of the features among them."""
    model, twin = truth.make(), truth.make(classes=classes)
    outcome = replaced(model, classes, truth.example())
    tensors = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert tensors == {name: (t.shape, t.dtype) for name, t in twin.state_dict().items()}
    for address in truth.follows:
        mine, its = fact(model, address), fact(twin, address)
        if isinstance(mine, Tensor):
            assert mine.shape == its.shape, address
        else:
            assert mine == its, address
    assert outcome.plan.parameters[1] == sum(p.numel() for p in twin.parameters())


@headed
def test_the_same_number_again_is_proven_too(truth: Hostile) -> None:
    """As 1000 -> 1000: every per-class tensor is new, and the axes were found by a probe."""
    model, example = truth.make(), truth.example()
    heads = {head.address: head.num_classes for head in find_heads(model, example)}
    chosen = {address: heads[address] for address in {**truth.heads, **truth.train_heads}}
    outcome = replace_head(model, heads=chosen, example=example, registry=NO_PLUGINS)
    assert outcome.new
    for address, tensor in outcome.new.items():
        assert tensor is not outcome.old[address]
        assert tensor.shape == outcome.old[address].shape
    for change in outcome.plan.outputs:
        axes = truth.outputs_in(training=change.mode == "train")
        assert change.after == change.before
        assert change.class_axes == ((axes[change.path],) if change.path in axes else ())
    sizes = {size for change in outcome.plan.outputs for size in change.after.shape}
    assert sizes.isdisjoint(outcome.plan.probes.values())


@settings(max_examples=40)
@given(classifiers(), st.integers(1, 50), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_any_number_of_classes_for_any_batch_and_size(
    drawn: Classifier, classes: int, batch: int, longer: int, training: bool
) -> None:
    model, example, truth = drawn
    inputs = grown(example, batch + training, longer)
    before = run(model, inputs, training=training)
    outcome = replaced(model, classes, example)
    after = run(model, inputs, training=training)
    for path, axis in truth.outputs.items():
        shape = list(before[path].shape)
        shape[axis] = classes
        assert list(after[path].shape) == shape
    assert set(outcome.plan.probes) == set(truth.heads)


def grown(example: Tensor, batch: int, times: int) -> Tensor:
    """The same kind of input with another batch, and longer, higher and wider."""
    example = example[:1].repeat(batch, *(1,) * (example.dim() - 1))
    if example.dim() == 4:
        return example.repeat(1, 1, times, times)
    if example.dim() == 3:
        convolved = example.shape[1] == 3
        return example.repeat(1, 1, times) if convolved else example.repeat(1, times, 1)
    return example if example.is_floating_point() else example.repeat(1, times)


@settings(max_examples=40)
@given(classifiers(), st.integers(1, 50))
def test_undo_is_bit_for_bit(drawn: Classifier, classes: int) -> None:
    model, example, _ = drawn
    before = state_of(model, example)
    outcome = replaced(model, classes, example)
    assert differences(before, state_of(model, example))
    assert outcome.undo() is model
    assert not differences(before, state_of(model, example))


@settings(max_examples=25)
@given(classifiers(), st.integers(1, 50))
def test_what_a_head_is_given_stays_bit_for_bit(drawn: Classifier, classes: int) -> None:
    model, example, truth = drawn
    [address] = truth.heads
    given_to: list[Tensor] = []
    model.get_submodule(address).register_forward_pre_hook(
        lambda module, args: given_to.append(args[0].clone())
    )
    run(model, example)
    replaced(model, classes, example)
    given_to[1:] = []
    run(model, example)
    assert torch.equal(*given_to)


@settings(max_examples=25)
@given(classifiers(), st.integers(1, 50))
def test_a_dry_run_is_the_plan_and_nothing_else(drawn: Classifier, classes: int) -> None:
    model, example, _ = drawn
    before = state_of(model, example)
    dry = replaced(model, classes, example, dry_run=True)
    assert not differences(before, state_of(model, example))
    assert dry.checks == ()
    assert dry.plan == replaced(model, classes, example).plan


def test_without_corroboration_there_is_one_warning_where_it_was_called() -> None:
    model = next(m for m in HOSTILE if m.name == "log_softmax_behind")
    with pytest.warns(UncorroboratedWarning, match="'fc' is taken for the head") as caught:
        replaced(model.make(), 7, model.example())
    assert len(caught) == 1
    assert caught[0].filename.endswith("test_head_hostile.py")
