"""Undo restores everything an operation changed, and nothing else."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import surgery
from surgery.errors import SurgeryError, UndoError
from tests.operations.cases import CASES, Branches, Recurrent, branches, build, refused
from tests.operations.state import content, differences, state_of
from tests.strategies import Classifier, classifiers, module_trees

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, steps: int = 2, example: Any = EXAMPLE) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, 0.1)
    for _ in range(steps):
        output = model(example)
        outputs = output if isinstance(output, tuple) else (output,)
        loss = sum((each.float() ** 2).sum() for each in outputs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


@pytest.mark.parametrize("name", CASES)
def test_what_is_done_and_undone_is_bit_for_bit_what_it_was(name: str) -> None:
    model = build(name)
    before = state_of(model)
    outcome = CASES[name].operate(model)
    assert differences(before, state_of(outcome.model))
    assert outcome.undo() is model
    assert not differences(before, state_of(model))


@settings(max_examples=40)
@given(classifiers(), st.integers(1, 9))
def test_replace_then_undo_is_nothing(drawn: Classifier, num_classes: int) -> None:
    model, example, truth = drawn
    heads = None if truth.corroborated else list(truth.heads)
    before = state_of(model, example)
    try:
        outcome = surgery.replace_head(model, num_classes, heads=heads, example=example)
    except SurgeryError:
        assert not differences(before, state_of(model, example))
        reject()
    outcome.undo()
    assert not differences(before, state_of(model, example))


@given(module_trees(), st.data())
def test_freeze_then_undo_is_nothing(model: nn.Module, data: st.DataObject) -> None:
    names = sorted({name for name, _ in model.named_parameters(remove_duplicate=False)})
    patterns = data.draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
    before = state_of(model)
    outcome = surgery.freeze(model, patterns or "*")
    outcome.undo()
    assert not differences(before, state_of(model))


def test_undo_after_training_gives_the_old_head_and_keeps_what_was_learned() -> None:
    model = Branches()
    replaced = ("fc.", "aux2.", "aux1.2.", "behind.")
    old = {name: content(p) for name, p in model.named_parameters()}
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    train(model)
    learned = {name: content(p) for name, p in model.named_parameters()}
    statistics = content(model.trunk[1].running_mean)
    outcome.undo()
    for name, parameter in model.named_parameters():
        wanted = old if name.startswith(replaced) else learned
        assert content(parameter) == wanted[name], name
        assert learned[name] != old[name], name
    assert content(model.trunk[1].running_mean) == statistics
    assert model.num_classes == model.config.num_labels == 5
    assert len(model.config.id2label) == 5
    train(model)


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16, torch.half], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name != "root replaced"])
def test_undo_after_another_dtype_is_equal_after_that_conversion(
    name: str, dtype: torch.dtype
) -> None:
    model, twin = build(name), build(name).to(dtype)
    outcome = CASES[name].operate(model)
    outcome.model.to(dtype)
    outcome.undo()
    assert_equal(model, twin)
    if dtype is torch.double:
        example = CASES[name].example()
        example = example.double() if example.is_floating_point() else example
        train(model, example=example)


def assert_equal(model: nn.Module, twin: nn.Module) -> None:
    """Parameters and buffers, their gradients and flags are equal, where and what they are."""
    ours, theirs = (
        {**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, twin)
    )
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        found = ours[name]
        assert (found.dtype, found.device) == (wanted.dtype, wanted.device), name
        assert type(found) is type(wanted), name
        assert found.requires_grad is wanted.requires_grad, name
        assert content(found) == content(wanted), name
        assert (found.grad is None) is (wanted.grad is None), name
        if found.grad is not None and wanted.grad is not None:
            assert found.grad.dtype == wanted.grad.dtype == found.dtype
            assert found.grad.device == wanted.grad.device
            assert content(found.grad) == content(wanted.grad), name


@pytest.mark.parametrize("name", [name for name in CASES if name != "root replaced"])
def test_undo_after_moving_to_another_device(name: str) -> None:
    model, twin = build(name), build(name).to("meta")
    outcome = CASES[name].operate(model)
    outcome.model.to("meta")
    assert outcome.undo() is model
    assert_equal(model, twin)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            weights = [getattr(module, name) for name in module._flat_weights_names]
            assert all(a is b for a, b in zip(module._flat_weights, weights, strict=True))


def test_undo_after_moving_there_and_back_is_bit_for_bit() -> None:
    model = Branches()
    before = {name: content(p) for name, p in model.named_parameters()}
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    model.double().float()
    outcome.undo()
    assert {name: content(p) for name, p in model.named_parameters()} == before


def test_values_that_never_were_do_not_come_back() -> None:
    with torch.device("meta"):
        model = Branches()
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    model.to_empty(device="cpu")
    before = state_of(model)
    with pytest.raises(UndoError, match="has no values"):
        outcome.undo()
    assert not differences(before, state_of(model))


def test_a_model_on_meta_is_done_and_undone() -> None:
    with torch.device("meta"):
        model = Branches()
    before = state_of(model)
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.fc.weight.shape == (7, 8)
    outcome.undo()
    assert not differences(before, state_of(model))


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Branches()
    before = state_of(model)
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    model.eval()
    with torch.inference_mode():
        assert model(EXAMPLE).shape == (3, 7)
    model.train()
    outcome.undo()
    assert not differences(before, state_of(model))


class Counting(TorchDispatchMode):
    """Counts the bytes of new storages."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.bytes += storage.nbytes()
                    self.known.add(storage.data_ptr())
        return result


def test_no_untouched_weight_is_copied() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 5))
    pointers = {n: p.data_ptr() for n, p in model.named_parameters() if not n.startswith("3.")}
    example = torch.zeros(2, 512, device="meta")
    surgery.replace_head(model, 7, heads="3", example=example).undo()
    with Counting() as counting:
        outcome = surgery.replace_head(model, 7, heads="3", example=example)
    head = sum(p.numel() * p.element_size() for p in model[3].parameters())
    assert counting.bytes <= 2 * head
    with Counting() as counting:
        outcome.undo()
    assert counting.bytes <= 2 * 5056, "the states of the generators, and nothing else"
    assert {n: p.data_ptr() for n, p in model.named_parameters() if n in pointers} == pointers


def test_what_is_kept_alive_is_released_with_the_outcome() -> None:
    model = Branches()
    old = weakref.ref(model.fc.weight)
    outcome = surgery.replace_head(model, 7, example=EXAMPLE)
    assert old() is not None
    del outcome
    assert old() is None
    assert model(EXAMPLE)[0].shape == (3, 7)


@pytest.mark.parametrize("name", ["branches", "modules", "backbone", "root replaced"])
def test_what_is_kept_alive_is_released_by_commit(name: str) -> None:
    model = build(name)
    parameters = [weakref.ref(p) for p in model.parameters()]
    outcome = CASES[name].operate(model)
    kept = {id(p) for p in outcome.model.parameters()}
    model = outcome.model
    assert all(reference() is not None for reference in parameters)
    outcome.commit()
    gone = [reference for reference in parameters if reference() is None]
    assert gone
    assert all(id(r()) in kept for r in parameters if r() is not None)
    assert not outcome.old
    with pytest.raises(UndoError, match="committed"):
        outcome.undo()
    outcome.commit()


def test_an_outcome_keeps_no_part_alive_that_the_user_threw_away() -> None:
    model, outcome = branches()
    trunk = weakref.ref(model.trunk[0])
    model.trunk[0] = nn.Linear(8, 8)
    assert trunk() is None
    outcome.undo()
    assert model.num_classes == 5


def test_the_model_is_free_once_it_and_the_outcome_are_gone() -> None:
    model, outcome = branches()
    reference = weakref.ref(model)
    del model, outcome
    assert reference() is None


def test_a_dry_run_has_nothing_to_undo() -> None:
    _, outcome = branches(dry_run=True)
    refused(outcome, "dry run")


def test_undo_twice_is_refused() -> None:
    _, outcome = branches()
    outcome.undo()
    refused(outcome, "undone already")


def test_commit_after_undo_changes_nothing() -> None:
    _, outcome = branches()
    outcome.undo()
    outcome.commit()
    assert outcome.old
    refused(outcome, "undone already")


@pytest.mark.parametrize(
    ("meddle", "named"),
    [
        (lambda m: setattr(m, "fc", nn.Linear(8, 7)), "fc"),
        (lambda m: setattr(m.aux1, "2", nn.Linear(6, 7)), "aux1.2"),
        (lambda m: setattr(m.fc, "weight", nn.Parameter(torch.zeros(2, 8))), "weight"),
        (lambda m: setattr(m.fc, "weight", None), "weight"),
        (lambda m: delattr(m, "fc"), "fc"),
        (lambda m: setattr(m, "behind", nn.Identity()), "behind"),
        (lambda m: setattr(m, "config", copy.deepcopy(m.config)), "config"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.fc), "weight"),
    ],
    ids=["head", "inside", "shape", "none", "gone", "behind", "config", "parametrized"],
)
def test_undo_is_refused_where_a_part_was_replaced_since(
    meddle: Callable[[Branches], object], named: str
) -> None:
    model, outcome = branches()
    meddle(model)
    error = refused(outcome, "was replaced by something else since")
    assert named in str(error)


def test_undo_after_the_new_head_was_loaded_by_assignment() -> None:
    model, outcome = branches()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    outcome.undo()
    assert model.fc.weight.shape == (5, 8)
    train(model)


def test_a_copy_of_a_changed_model_is_independent() -> None:
    model, outcome = branches()
    copied = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    outcome.undo()
    for other in (copied, loaded):
        assert other.fc.weight.shape == (7, 8)
        assert other.num_classes == 7
        train(other)
        surgery.replace_head(other, 3, example=EXAMPLE).undo()
        assert other(EXAMPLE)[0].shape == (3, 7)
    assert model.fc.weight.shape == (5, 8)


def test_a_recurrent_layer_keeps_its_list_of_weights_through_everything() -> None:
    model = Recurrent()
    example = torch.zeros(2, 5, dtype=torch.long)
    outcome = CASES["recurrent"].operate(model)
    train(model, example=example)
    model.double()
    outcome.undo()
    rnn = model.rnn
    weights = [getattr(rnn, name) for name in rnn._flat_weights_names]
    assert all(a is b for a, b in zip(rnn._flat_weights, weights, strict=True))
    train(model, example=example)
