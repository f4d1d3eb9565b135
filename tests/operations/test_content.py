"""Values written into a tensor that stays: what they are afterwards, and what comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from surgery import tree
from surgery.errors import VerificationError
from surgery.operations.apply import apply
from surgery.operations.content import Content, owns_its_memory, region
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.size import count_parameters
from tests.operations.faults import events_of, fails_at
from tests.operations.state import content, differences, state_of
from tests.strategies import module_trees


def filling(model: nn.Module, values: dict[str, torch.Tensor], fresh: bool = False) -> Plan:
    """A plan that writes values."""
    index = tree.index(model)
    steps = tuple(
        Step(
            "values",
            index.addresses(tree.get(model, address)),
            "old",
            "new",
            Content(lambda value=value: value, fresh),
        )
        for address, value in values.items()
    )
    count = count_parameters(model)
    return Plan("fill", steps, (), (count, count))


def changed(tensor: torch.Tensor) -> torch.Tensor:
    """Other values of the same form."""
    if tensor.dtype == torch.bool:
        return ~tensor.detach()
    return (tensor.detach().to(torch.double) + 1).to(tensor.dtype)


def versionless(state: dict[str, object]) -> dict[str, object]:
    return {path: value for path, value in state.items() if not path.endswith(": version")}


@given(module_trees(), st.data())
def test_what_was_named_is_equal_and_nothing_else_moved(model: nn.Module, data: st.DataObject):
    entries = list(tree.index(model).of_kind("parameter", "buffer"))
    chosen = data.draw(st.sets(st.sampled_from(range(len(entries))))) if entries else set()
    values = {entries[place].address: changed(entries[place].tensor) for place in chosen}
    bytes_before = {entry.address: content(entry.tensor) for entry in entries}
    before = versionless(state_of(model))
    outcome = apply(model, filling(model, values))
    for entry in entries:
        now = tree.get(model, entry.address)
        assert now is entry.tensor
        wanted = values.get(entry.address)
        assert content(now) == (bytes_before[entry.address] if wanted is None else content(wanted))
    outcome.undo()
    assert not differences(before, versionless(state_of(model)))


def test_memory_that_nobody_shares_is_exchanged_and_comes_back():
    model = nn.Linear(4, 3)
    weight, pointer, version = model.weight, model.weight.data_ptr(), model.weight._version
    assert owns_its_memory(weight)
    outcome = apply(model, filling(model, {"weight": torch.ones(3, 4)}))
    assert model.weight is weight
    assert weight.data_ptr() != pointer
    assert weight._version == version + 1
    assert outcome.old["weight"].data_ptr() == pointer
    assert outcome.new["weight"] is weight
    outcome.undo()
    assert weight.data_ptr() == pointer
    assert weight._version == version + 2


def test_fresh_values_become_the_memory_without_a_copy():
    model, values = nn.Linear(4, 3), torch.ones(3, 4)
    apply(model, filling(model, {"weight": values}, fresh=True))
    assert model.weight.data_ptr() == values.data_ptr()
    channels_last = torch.ones(3, 4).t().contiguous().t()
    apply(model, filling(model, {"weight": channels_last}, fresh=True))
    assert model.weight.is_contiguous()


@pytest.mark.parametrize(
    "share",
    [
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.detach().numpy(),
        lambda tensor: tensor.data[:1],
        lambda tensor: tensor.share_memory_(),
    ],
)
def test_memory_that_something_shares_is_written_in_place(share):
    model = nn.Linear(4, 3)
    held, pointer, before = share(model.weight), model.weight.data_ptr(), content(model.weight)
    assert not owns_its_memory(model.weight)
    outcome = apply(model, filling(model, {"weight": torch.ones(3, 4)}))
    assert model.weight.data_ptr() == pointer
    assert model.weight.unique().tolist() == [1]
    assert outcome.old["weight"].tolist() != [[1] * 4] * 3
    outcome.undo()
    assert model.weight.data_ptr() == pointer
    assert content(model.weight) == before
    assert held is not None


def test_part_of_a_larger_memory_is_written_in_place():
    flat = torch.zeros(16)
    model = nn.Linear(4, 3, bias=False)
    model.weight.data = flat[2:14].view(3, 4)
    del flat
    pointer = model.weight.data_ptr()
    apply(model, filling(model, {"weight": torch.ones(3, 4)})).undo()
    assert model.weight.data_ptr() == pointer
    assert not model.weight.any()


def test_a_graph_recorded_before_refuses_to_go_backward():
    model, example = nn.Linear(4, 3), torch.ones(2, 4, requires_grad=True)
    loss = model(example).sum()
    apply(model, filling(model, {"weight": torch.ones(3, 4)}))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_strides_dtype_flags_gradients_and_inference_stay():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).half()
    model.weight.requires_grad_(False)
    model.bias.grad = gradient = torch.ones(4).half()
    strides = model.weight.stride()
    apply(model, filling(model, {"weight": torch.full((4, 3, 3, 3), 0.1), "bias": torch.ones(4)}))
    assert model.weight.stride() == strides
    assert model.weight.dtype == torch.half
    assert not model.weight.requires_grad
    assert model.bias.grad is gradient
    with torch.inference_mode():
        model = nn.Linear(4, 3)
        values = torch.ones(3, 4)
    apply(model, filling(model, {"weight": values})).undo()
    assert model.weight.is_inference()
    plain = nn.Linear(4, 3)
    with torch.inference_mode():
        apply(plain, filling(plain, {"weight": values}, fresh=True))
    assert not plain.weight.is_inference()
    plain(torch.ones(1, 4)).sum().backward()


def test_undo_follows_a_model_that_moved():
    model = nn.BatchNorm1d(4).double()
    model.weight.data.uniform_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    values = {name: torch.full((4,), 7.0) for name in ("weight", "running_mean")}
    outcome = apply(model, filling(model, values))
    model.float()
    outcome.undo()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name].to(value.dtype)), name
        assert value.dtype != torch.double


def test_values_that_cannot_be_read_leave_everything():
    model = nn.Linear(4, 3)

    def broken() -> torch.Tensor:
        raise OSError("the disk is gone")

    plan = filling(model, {"weight": torch.ones(3, 4), "bias": torch.ones(3)})
    bias = Step("values", ("bias",), "old", "new", Content(broken))
    plan = Plan("fill", (plan.steps[0], bias), (), plan.parameters)
    before = state_of(model)
    with pytest.raises(OSError, match="gone"):
        apply(model, plan)
    assert not differences(before, state_of(model))


def test_a_tensor_that_is_written_and_not_planned_is_found():
    model = nn.Linear(4, 3)
    plan = filling(model, {"weight": torch.ones(3, 4)})

    def meddling() -> torch.Tensor:
        with torch.no_grad():
            model.bias.add_(1)
        return torch.ones(3, 4)

    step = Step("values", ("weight",), "old", "new", Content(meddling))
    with pytest.raises(VerificationError, match="bias was written to"):
        apply(model, Plan("fill", (step,), (), plan.parameters))


class Held(nn.Module):
    """One tensor that shares memory and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Parameter(torch.zeros(3))
        self.flat = torch.zeros(8)
        self.part = nn.Parameter(self.flat[2:5])


def test_faults_anywhere_leave_the_bytes_and_the_versions(monkeypatch: pytest.MonkeyPatch):
    from surgery.operations import apply as applying
    from surgery.operations import history

    monkeypatch.setattr(history, "_standing", [])
    monkeypatch.setattr(applying, "rehearse", lambda *_: None)
    model = Held()
    plan = filling(model, {"alone": torch.ones(3), "part": torch.ones(3)})

    def everything() -> dict[str, object]:
        return state_of(model, history.standing())

    events = events_of(lambda: apply(model, plan).undo())
    outcomes: list[Outcome] = []
    before = everything()
    files = ("journal", "content", "apply")
    chosen = [e for e in events if e.where.split(".py")[0] in files or "write" in e.kind]
    assert chosen
    for event in chosen:
        if fails_at(event, lambda: outcomes.append(apply(model, plan))):
            assert not differences(before, everything()), event
        else:
            outcomes.pop().undo()
            before = everything()


def test_regions_are_what_a_tensor_spans():
    flat = torch.zeros(8)
    start = flat.data_ptr()
    assert region(flat[2:5]) == (flat.device, start + 8, start + 20)
    assert region(flat.view(4, 2)[:, 0]) == (flat.device, start, start + 28)
    assert region(torch.zeros(0)) is None
    assert region(torch.zeros(2, device="meta")) is None
