"""Verification sees whatever an operation did beside its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery import tree
from surgery.graph.graph import Spec
from surgery.operations.apply import apply
from surgery.operations.plan import Check, Plan
from surgery.operations.simulate import ProbeSizes, outputs_after, rehearse
from surgery.operations.verify import ModelState, verify
from surgery.recording import record
from tests.operations.cases import CASES, Branches, build
from tests.operations.state import differences, state_of

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def checks_after(meddle: Callable[[Branches], object]) -> dict[str, Check]:
    """Replace the heads, do something more, and verify."""
    model = Branches()
    model.twin = model.trunk[0]
    model.trunk[0].register_forward_hook(_nothing)
    plan = surgery.replace_head(model, 7, example=EXAMPLE, dry_run=True).plan
    before = ModelState.of(model)
    apply(model, plan)
    meddle(model)
    return {check.name: check for check in verify(model, plan, before)}


def _nothing(*_: object) -> None:
    return None


def test_all_checks_pass_where_only_the_plan_was_done() -> None:
    checks = checks_after(lambda model: None)
    assert all(check.passed for check in checks.values())
    assert "axes found by trying" in checks["outputs"].finding
    assert checks["ties"].finding == "2 shared tensors are still shared"


def _parameter(model: Branches) -> nn.Parameter:
    return model.trunk[0].weight


def _write(model: Branches) -> None:
    with torch.no_grad():
        _parameter(model).zero_()


def _swap_data(model: Branches) -> None:
    _parameter(model).data = _parameter(model).data.clone()


def _set(path: str, value: Any) -> Callable[[Branches], None]:
    def meddle(model: Branches) -> None:
        owner, name = tree.split(path)
        setattr(model.get_submodule(owner), name, value)

    return meddle


MEDDLED: dict[str, tuple[Callable[[Branches], object], str, str]] = {
    "a parameter written to": (_write, "untouched tensors", "trunk.0.weight was written to"),
    "its values moved": (_swap_data, "untouched tensors", "trunk.0.weight was written to"),
    "another parameter": (
        _set("trunk.0.weight", nn.Parameter(torch.zeros(8, 8))),
        "untouched tensors",
        "trunk.0.weight is another tensor",
    ),
    "a parameter gone": (
        _set("trunk.0.bias", None),
        "untouched tensors",
        "trunk.0.bias is gone",
    ),
    "a buffer more": (
        lambda m: m.trunk.register_buffer("extra", torch.zeros(2)),
        "untouched tensors",
        "trunk.extra is new",
    ),
    "a plain tensor more": (
        _set("trunk.extra", torch.zeros(2)),
        "untouched tensors",
        "trunk.extra is new",
    ),
    "statistics written to": (
        lambda m: m.trunk[1].running_mean.zero_(),
        "untouched tensors",
        "trunk.1.running_mean was written to",
    ),
    "a flag": (
        lambda m: _parameter(m).requires_grad_(False),
        "device and dtype",
        "trunk.0.weight.requires_grad moved",
    ),
    "a dtype": (lambda m: m.trunk.double(), "device and dtype", "torch.float64"),
    "a module": (_set("trunk.2", nn.GELU()), "modules", "trunk.2 is another module"),
    "a mode": (lambda m: m.trunk.eval(), "modules", "train and eval mode"),
    "a hook more": (
        lambda m: m.trunk[0].register_forward_hook(_nothing),
        "modules",
        "hooks of trunk.0",
    ),
    "a hook table": (
        lambda m: setattr(m.trunk[0], "_forward_hooks", m.trunk[0]._forward_hooks.copy()),
        "modules",
        "hooks of trunk.0",
    ),
    "more parameters": (
        _set("trunk.more", nn.Linear(2, 2)),
        "parameter count",
        "planned",
    ),
    "a fact": (_set("num_classes", 9), "planned changes", "num_classes"),
    "a head set again": (
        _set("fc.weight", nn.Parameter(torch.zeros(7, 8))),
        "planned changes",
        "fc.weight",
    ),
    "another output": (_set("behind", nn.Linear(7, 4)), "outputs", "expected float32[3, 7]"),
    "a model that does not run": (_set("trunk.2", nn.Linear(2, 2)), "outputs", "no longer runs"),
}


@pytest.mark.parametrize("name", MEDDLED)
def test_whatever_else_was_done_fails_a_check(name: str) -> None:
    meddle, check, finding = MEDDLED[name]
    found = checks_after(meddle)[check]
    assert not found.passed
    assert finding in found.finding


def test_a_tie_that_was_cut_fails_a_check() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.two(self.one(x)))

    model = Tied()
    plan = surgery.replace_head(model, 7, example=EXAMPLE, dry_run=True).plan
    before = ModelState.of(model)
    apply(model, plan)
    model.two.weight = nn.Parameter(model.one.weight.detach().clone())
    checks = {check.name: check for check in verify(model, plan, before)}
    assert "no longer one tensor" in checks["ties"].finding


def test_long_lists_of_findings_are_cut() -> None:
    checks = checks_after(lambda model: [p.data.zero_() for p in model.parameters()])
    finding = checks_after(lambda m: m.double())["device and dtype"].finding
    assert "more" in finding
    assert checks["parameter count"].passed


def test_a_planned_output_that_never_comes_fails() -> None:
    model = Branches()
    plan = surgery.replace_head(model, 7, example=EXAMPLE, dry_run=True).plan
    gone = replace(plan.outputs[0], path="output[9]", after=Spec((1,), torch.float32))
    before = ModelState.of(model)
    apply(model, plan)
    changed = replace(plan, outputs=(*plan.outputs[1:], gone))
    finding = verify(model, changed, before)[0].finding
    assert "output[9] (eval) is gone" in finding
    assert "was not there before" in finding


@pytest.mark.parametrize("name", CASES)
def test_verifying_and_planning_leave_no_trace(name: str) -> None:
    model = build(name)
    example = CASES[name].example()
    before = state_of(model, example)
    plan = CASES[name].operate(model, dry_run=True).plan
    rehearse(model, plan.steps)
    verify(model, Plan("nothing", (), (), plan.parameters[:1] * 2), ModelState.of(model))
    assert not differences(before, state_of(model, example))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_is_kept_and_does_not_matter(mode: Any) -> None:
    model = Branches()
    with mode():
        outcome = surgery.replace_head(model, 7, example=EXAMPLE)
        assert torch.is_grad_enabled() is (mode is torch.enable_grad)
    assert all(check.passed for check in outcome.checks)
    assert all(p.requires_grad for p in model.parameters())
    model(EXAMPLE)[0].sum().backward()
    assert model.fc.weight.grad is not None
    outcome.undo()


def test_the_same_number_of_classes_is_proven_too() -> None:
    model = Branches()
    outcome = surgery.replace_head(model, 5, example=EXAMPLE)
    assert all(change.before == change.after for change in outcome.plan.outputs)
    assert all(change.class_axes == (1,) for change in outcome.plan.outputs)
    assert all(check.passed for check in outcome.checks)


def test_probe_sizes_are_primes_that_nothing_else_has() -> None:
    graph = record(Branches(), EXAMPLE)
    sizes = ProbeSizes([graph], [11, 13])
    drawn = [sizes.next() for _ in range(5)] + [sizes.next(4)]
    assert len({*drawn, 11, 13}) == 8
    assert drawn[-1] % 4 == 0
    assert not {size for node in graph.nodes for spec in node.outputs for size in spec.shape} & {
        *drawn
    }


def test_a_trial_of_nothing_shows_the_model_as_it_is() -> None:
    model = Branches().eval()
    leaves = outputs_after(model, (), surgery.Example.of(EXAMPLE), ["eval", "train"])
    assert {
        mode: [leaf.spec.shape for leaf in found.values()] for mode, found in leaves.items()
    } == {
        "eval": [(3, 5)],
        "train": [(3, 5), (3, 5), (3, 5)],
    }
