"""``surgery.replace``: any module, verified and undone like a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery import tree
from surgery.errors import AddressError, ArgumentError, PlanError, RecordError, SurgeryError
from tests.operations.state import differences, state_of
from tests.strategies import Classifier, classifiers

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def model_of(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, 5))


def test_several_modules_change_at_once_and_nothing_else() -> None:
    model = model_of()
    kept = {name: p for name, p in model.named_parameters() if name.startswith("2.")}
    new = {"0": nn.Linear(8, 6, bias=False), "1": nn.GELU(), "3": nn.Linear(6, 9)}
    outcome = surgery.replace(model, new, example=EXAMPLE)
    assert outcome.model is model
    assert all(model.get_submodule(address) is module for address, module in new.items())
    assert all(dict(model.named_parameters())[name] is p for name, p in kept.items())
    assert model(EXAMPLE).shape == (3, 9)
    assert all(check.passed for check in outcome.checks)
    assert outcome.old.keys() == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert outcome.new.keys() == {"0.weight", "3.weight", "3.bias"}
    before, after = outcome.plan.parameters
    assert after == sum(p.numel() for p in model.parameters())
    changed = {change.path: change for change in outcome.plan.outputs}
    assert changed["output"].before.shape == (3, 5)
    assert changed["output"].after.shape == (3, 9)
    outcome.undo()
    assert before == sum(p.numel() for p in model.parameters())


@settings(max_examples=30)
@given(classifiers(), st.data())
def test_any_module_may_be_replaced_by_its_like(drawn: Classifier, data: st.DataObject) -> None:
    model, example, truth = drawn
    twin = truth.make(seed=1)
    addresses = [address for address, _ in tree.walk(model)]
    address = data.draw(st.sampled_from(addresses))
    new = tree.get_module(twin, address)
    before = state_of(model, example)
    try:
        outcome = surgery.replace(model, {address: new}, example=example)
    except PlanError:
        assert not differences(before, state_of(model, example))
        reject()
    assert all(change.before == change.after for change in outcome.plan.outputs)
    assert tree.get_module(outcome.model, address) is new
    outcome.undo()
    assert not differences(before, state_of(model, example))


def test_a_shared_module_is_replaced_at_every_address() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, shared)
    new = nn.Linear(8, 8, bias=False)
    outcome = surgery.replace(model, {"2": new}, example=EXAMPLE)
    assert model[0] is model[2] is model[3] is new
    assert outcome.plan.parameters == (72, 64)
    outcome.undo()
    assert model[0] is model[2] is model[3] is shared


def test_mode_and_hooks_pass_to_the_new_module_and_come_back() -> None:
    model = model_of().eval()
    ran: list[str] = []
    handle = model[1].register_forward_hook(lambda *_: ran.append("after"))
    before = model[1].register_forward_pre_hook(lambda *_: ran.append("before"))
    old, new = model[1], nn.Sequential(nn.GELU(), nn.Dropout())
    outcome = surgery.replace(model, {"1": new}, example=EXAMPLE)
    assert not any(module.training for module in new.modules())
    ran.clear()
    model(EXAMPLE)
    assert ran == ["before", "after"]
    handle.remove()
    ran.clear()
    model(EXAMPLE)
    assert ran == ["before"]
    outcome.undo()
    assert new.training
    assert not new._forward_pre_hooks
    ran.clear()
    model(EXAMPLE)
    assert ran == ["before"]
    before.remove()
    assert not old._forward_pre_hooks


def test_a_layer_may_be_wrapped_and_keeps_its_hooks() -> None:
    model = model_of().eval()
    ran: list[nn.Module] = []
    model[3].register_forward_hook(lambda module, *_: ran.append(module))
    start = state_of(model, process=False)
    old = model[3]
    outcome = surgery.replace(model, {"3": nn.Sequential(old, nn.Softmax(1))}, example=EXAMPLE)
    ran.clear()
    assert torch.allclose(model(EXAMPLE).sum(1), torch.ones(3))
    assert ran == [old]
    assert outcome.plan.parameters[0] == outcome.plan.parameters[1]
    outcome.undo()
    assert not differences(start, state_of(model, process=False))


def test_a_wrapped_layer_moves_with_the_model_and_comes_back_moved_once() -> None:
    model = model_of()
    outcome = surgery.replace(model, {"3": nn.Sequential(model[3], nn.Softmax(1))}, example=EXAMPLE)
    model.double()
    outcome.undo()
    assert {p.dtype for p in model.parameters()} == {torch.double}
    assert model(EXAMPLE.double()).dtype == torch.double


def test_the_root_itself_may_be_replaced() -> None:
    model = model_of()
    ran: list[int] = []
    model.register_forward_hook(lambda *_: ran.append(1))
    new = nn.Linear(8, 2)
    outcome = surgery.replace(model, {"": new}, example=EXAMPLE)
    assert outcome.model is new
    ran.clear()
    new(EXAMPLE)
    assert ran == [1]
    assert outcome.undo() is model
    assert not new._forward_hooks


@pytest.mark.parametrize("training", [True, False])
def test_a_new_root_is_seen_in_both_modes(training: bool) -> None:
    class Auxiliary(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return (super().forward(x), x) if self.training else super().forward(x)

    outcome = surgery.replace(model_of().train(training), {"": Auxiliary(8, 2)}, example=EXAMPLE)
    assert [(change.mode, change.path) for change in outcome.plan.outputs] == [
        ("eval", "output"),
        ("train", "output[0]"),
        ("train", "output[1]"),
    ]
    assert outcome.model.training is training


def test_a_hook_of_the_root_that_changes_the_output_counts() -> None:
    model = model_of()
    model.register_forward_hook(lambda module, args, output: output[:, :1])
    outcome = surgery.replace(model, {"": nn.Linear(8, 2)}, example=EXAMPLE)
    assert {change.after.shape for change in outcome.plan.outputs} == {(3, 1)}


def test_parameters_may_be_tied_to_the_models_own() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 8)
            self.out = nn.Linear(8, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.embedding(x))

    model = Tied()
    new = nn.Linear(8, 9, bias=False)
    new.weight = model.embedding.weight
    outcome = surgery.replace(model, {"out": new}, example=torch.zeros(2, 3, dtype=torch.long))
    assert outcome.plan.parameters == (72 + 81, 72)
    outcome.undo()


def test_a_model_that_runs_in_eval_mode_only_says_so() -> None:
    model = model_of()
    outcome = surgery.replace(model, {"1": nn.GELU()}, example=EXAMPLE[:1])
    assert {change.mode for change in outcome.plan.outputs} == {"eval"}
    assert any("train mode was not seen" in note for note in outcome.plan.notes)


@pytest.mark.usefixtures("compiler")
def test_a_wrapper_that_goes_is_named() -> None:
    model = model_of()
    compiled = model[1] = torch.compile(nn.ReLU(), backend="eager")
    outcome = surgery.replace(model, {"1": nn.GELU()}, example=EXAMPLE)
    assert any("OptimizedModule" in note for note in outcome.plan.notes)
    outcome.undo()
    assert model[1] is compiled


@pytest.fixture
def compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("modules", "error", "match"),
    [
        ({}, ArgumentError, "by address"),
        ("3", ArgumentError, "by address"),
        ({"3": torch.zeros(2)}, ArgumentError, "replaced by a module"),
        ({"3": nn.Linear}, ArgumentError, "replaced by a module"),
        ({3: nn.Identity()}, ArgumentError, "replaced by a module"),
        ({"nope": nn.Identity()}, AddressError, "nope"),
        ({"3.weight": nn.Identity()}, AddressError, "3.weight"),
        ({"": nn.Identity(), "3": nn.Identity()}, ArgumentError, "inside another"),
        ({"3": nn.Linear(7, 5)}, PlanError, "no longer runs"),
        ({"3": nn.Linear(6, 5).double()}, PlanError, "not where the old one is"),
        ({"3": nn.Linear(6, 5, device="meta")}, PlanError, "not where the old one is"),
        ({"3": nn.LazyLinear(5)}, SurgeryError, "lazy"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_what_cannot_be_replaced_is_refused_before_anything_is_touched(
    modules: Any, error: type[SurgeryError], match: str
) -> None:
    model = model_of()
    before = state_of(model)
    with pytest.raises(error, match=match):
        surgery.replace(model, modules, example=EXAMPLE)
    assert not differences(before, state_of(model))


def test_two_addresses_of_one_module_are_refused() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, shared)
    with pytest.raises(ArgumentError, match="two addresses of one module"):
        surgery.replace(model, {"0": nn.Linear(8, 8), "1": nn.Linear(8, 8)}, example=EXAMPLE)


def test_a_module_that_contains_the_model_is_refused() -> None:
    model = model_of()
    with pytest.raises(ArgumentError, match="contain itself"):
        surgery.replace(model, {"1": nn.Sequential(model)}, example=EXAMPLE)


def _hook_both(model: nn.Sequential) -> None:
    for place in (0, 3):
        model[place].register_forward_hook(lambda *_: None)


def _other_mode(model: nn.Sequential) -> None:
    model[3].eval()


@pytest.mark.parametrize(
    ("prepare", "match"),
    [(_hook_both, "sets of hooks"), (_other_mode, "in train and in eval mode")],
)
def test_one_new_module_in_two_places_must_fit_both(
    prepare: Callable[[nn.Sequential], None], match: str
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 8))
    new = nn.Linear(8, 8)
    outcome = surgery.replace(model, {"0": new, "3": new}, example=EXAMPLE)
    assert outcome.plan.parameters == (144, 72)
    outcome.undo()
    prepare(model)
    before = state_of(model, new)
    with pytest.raises(PlanError, match=match):
        surgery.replace(model, {"0": new, "3": new}, example=EXAMPLE)
    assert not differences(before, state_of(model, new))


def test_a_part_that_serves_elsewhere_in_another_mode_is_refused() -> None:
    model = model_of()
    model[2].eval()
    before = state_of(model)
    with pytest.raises(PlanError, match="in train and in eval mode"):
        surgery.replace(model, {"1": nn.Sequential(nn.GELU(), model[2])}, example=EXAMPLE)
    assert not differences(before, state_of(model))


@pytest.mark.parametrize("old_style", [False, True])
def test_hooks_beside_those_of_torch_are_not_torn_apart(old_style: bool) -> None:
    model = model_of()
    nn.utils.spectral_norm(model[3]) if old_style else model[3].register_forward_hook(_nothing)
    model[3].register_forward_pre_hook(_nothing)
    new = nn.Linear(6, 5)
    if not old_style:
        new.register_forward_hook(_nothing)
    with pytest.raises(PlanError, match="hooks of the old module"):
        surgery.replace(model, {"3": new}, example=EXAMPLE)


def _nothing(*_: object) -> None:
    return None


def test_hooks_by_which_torch_makes_a_weight_stay_behind() -> None:
    model = model_of()
    nn.utils.spectral_norm(model[3])
    start = state_of(model, process=False)
    outcome = surgery.replace(model, {"3": nn.Linear(6, 5)}, example=EXAMPLE)
    assert not model[3]._forward_pre_hooks
    outcome.undo()
    assert not differences(start, state_of(model, process=False))


def test_a_model_that_does_not_run_cannot_be_compared() -> None:
    with pytest.raises(RecordError):
        surgery.replace(nn.Linear(3, 2), {"": nn.Linear(8, 2)}, example=EXAMPLE)


def test_a_dry_run_touches_neither_the_model_nor_the_new_module() -> None:
    model, new = model_of().eval(), nn.Linear(6, 9)
    before = state_of(model, new)
    outcome = surgery.replace(model, {"3": new}, example=EXAMPLE, dry_run=True)
    assert not outcome.checks
    assert outcome.plan.steps[0].new is new
    assert not differences(before, state_of(model, new))
