"""Hooks and parametrizations of the user's own, in models that are laid one over the other."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import contents

NOTHING = Registry.of()
ROW = torch.randn(2, 4)
CALLS = 0
KINDS: Counter[str] = Counter()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).eval()


def brought(donor: nn.Module, recipient: nn.Module) -> surgery.Outcome:
    outcome = surgery.transplant(donor, recipient, match="graph", example=ROW, registry=NOTHING)
    assert torch.allclose(donor(ROW), recipient(ROW), atol=1e-6)
    return outcome


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def shifted(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] + 1,)


def test_a_hook_that_changes_what_comes_out_is_part_of_the_model():
    donor, recipient = network(), network()
    donor[0].register_forward_hook(doubled)
    before = contents(recipient)
    with pytest.raises(PlanError, match=r"mul\(other=2\)"):
        brought(donor, recipient)
    assert contents(recipient) == before
    handle = recipient[0].register_forward_hook(doubled)
    brought(donor, recipient)
    handle.remove()
    assert not torch.allclose(donor(ROW), recipient(ROW))


def test_a_hook_before_a_layer_is_part_of_the_model():
    donor, recipient = network(), network()
    donor[2].register_forward_pre_hook(shifted)
    with pytest.raises(PlanError, match=r"add\(other=1"):
        brought(donor, recipient)
    recipient[2].register_forward_pre_hook(shifted)
    brought(donor, recipient)
    assert len(recipient[2]._forward_pre_hooks) == 1


class Watches:
    """It counts, and keeps what it saw."""

    def __init__(self) -> None:
        self.count, self.seen = 0, []  # type: ignore[var-annotated]

    def look(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.count += 1
        self.seen.append(output)

    __call__ = look


def in_a_list() -> tuple[Callable[..., None], Callable[[], object]]:
    seen: list[Tensor] = []
    return lambda module, args, output: seen.append(output), lambda: len(seen)


def in_a_variable() -> tuple[Callable[..., None], Callable[[], object]]:
    count = 0

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal count
        count += 1

    return hook, lambda: count


def in_a_global() -> tuple[Callable[..., None], Callable[[], object]]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        global CALLS
        CALLS += 1
        KINDS[type(module).__name__] += 1

    return hook, lambda: (CALLS, dict(KINDS))


def in_a_default() -> tuple[Callable[..., None], Callable[[], object]]:
    kept: dict[int, Tensor] = {}

    def hook(module: nn.Module, args: Any, output: Tensor, kept: Any = kept) -> None:
        kept[len(kept)] = output

    return hook, lambda: len(kept)


def in_a_partial() -> tuple[Callable[..., None], Callable[[], object]]:
    seen: list[str] = []

    def hook(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(name)

    return functools.partial(hook, "first"), lambda: len(seen)


def in_an_object() -> tuple[Callable[..., None], Callable[[], object]]:
    watches = Watches()
    return watches, lambda: (watches.count, len(watches.seen))


def by_a_method() -> tuple[Callable[..., None], Callable[[], object]]:
    watches = Watches()
    return watches.look, lambda: (watches.count, len(watches.seen))


COUNTERS = [
    in_a_list,
    in_a_variable,
    in_a_global,
    in_a_default,
    in_a_partial,
    in_an_object,
    by_a_method,
]


@pytest.mark.parametrize("place", COUNTERS, ids=lambda place: place.__name__)
def test_what_hooks_count_and_collect_is_left_as_it_was(
    place: Callable[[], tuple[Callable[..., None], Callable[[], object]]],
):
    donor, recipient = network(), network()
    hook, told = place()
    for model in (donor, recipient):
        model[0].register_forward_hook(hook)
    donor(ROW)
    before = told()
    surgery.align(donor, recipient, example=ROW, registry=NOTHING)
    surgery.transplant(donor, recipient, match="graph", example=ROW, registry=NOTHING)
    assert told() == before
    donor(ROW)
    assert told() != before


def test_parametrizations_are_part_of_the_model():
    donor, recipient = network(), network()
    for model in (donor, recipient):
        parametrizations.weight_norm(model[0])
    with torch.no_grad():
        donor[0].parametrizations.weight.original0.mul_(3)
    outcome = brought(donor, recipient)
    assert parametrize.is_parametrized(recipient[0])
    gain = recipient[0].parametrizations.weight.original0
    assert torch.equal(gain, donor[0].parametrizations.weight.original0)
    outcome.undo()
    assert not torch.equal(gain, donor[0].parametrizations.weight.original0)
