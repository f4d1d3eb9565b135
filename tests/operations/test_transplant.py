"""Layers of one model in another: the very values, nothing else moved, and both come back."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import surgery
from surgery import tree
from surgery.errors import UndoError
from tests.operations.state import content, differences, state_of
from tests.strategies import module_trees

HOWS = ("copy", "share", "move")


def blocks(*widths: int) -> nn.Sequential:
    """Convolutions with batch normalisation, one block for each pair of widths."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs)
    )


class Net(nn.Module):
    """A stem, an encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.encoder = blocks(4, 4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.encoder(self.stem(x)).mean((2, 3)))


def shaken(model: nn.Module) -> nn.Module:
    """The model with other values in everything that has some."""
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        tensor = entry.tensor.detach()
        tensor.copy_(torch.rand(tensor.shape).mul(9).to(tensor.dtype))
    return model


def alike(model: nn.Module) -> nn.Module:
    """A model of the same form and other values."""
    return shaken(copy.deepcopy(model))


def contents(model: nn.Module) -> dict[str, object]:
    index = tree.index(model)
    return {a: content(e.tensor) for e in index.tensors.values() for a in e.addresses}


def versionless(state: dict[str, object]) -> dict[str, object]:
    return {path: value for path, value in state.items() if not path.endswith(": version")}


@given(module_trees(), st.data())
def test_what_is_mapped_is_equal_and_nothing_else_moves(recipient: nn.Module, data: st.DataObject):
    index = tree.index(recipient)
    entries = list(index.of_kind("parameter", "buffer"))
    if not entries:
        return
    donor = alike(recipient)
    chosen = data.draw(st.sets(st.sampled_from(entries), min_size=1))
    mapping = {entry.address: entry.address for entry in chosen}
    theirs, ours, before = contents(donor), contents(recipient), versionless(state_of(recipient))
    donated = state_of(donor)
    outcome = surgery.transplant(donor, recipient, mapping)
    arrived = {address for entry in chosen for address in entry.addresses}
    assert contents(recipient) == {
        address: (theirs if address in arrived else ours)[address] for address in ours
    }
    assert not differences(donated, state_of(donor))
    assert {id(e.tensor) for e in entries} == set(tree.index(recipient).tensors) & set(
        index.tensors
    ) - {id(e.tensor) for e in index.of_kind("attribute")}
    outcome.undo()
    assert not differences(before, versionless(state_of(recipient)))


@given(module_trees())
def test_without_a_mapping_everything_that_both_have_goes(recipient: nn.Module):
    if not list(tree.index(recipient).of_kind("parameter", "buffer")):
        return
    donor = alike(recipient)
    surgery.transplant(donor, recipient)
    for entry in tree.index(recipient).of_kind("parameter", "buffer"):
        assert content(entry.tensor) == content(tree.get(donor, entry.address))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("freeze", [False, True])
def test_undo_restores_both_models(how: Any, freeze: bool):
    donor, recipient = shaken(blocks(4, 4, 4)), Net()
    before = versionless(state_of(recipient, donor))
    theirs = contents(donor)
    outcome = surgery.transplant(
        donor, recipient, {"*.0": "encoder.*.0", "*.1": "encoder.*.1"}, how=how, freeze=freeze
    )
    arrived = contents(recipient)
    for address, held in theirs.items():
        assert arrived[f"encoder.{address}"] == held
    assert recipient.encoder[0][1].training is not freeze
    assert any(p.requires_grad for p in recipient.encoder.parameters()) is not freeze
    assert recipient.stem.weight.requires_grad
    outcome.undo()
    assert not differences(before, versionless(state_of(recipient, donor)))


def test_a_copy_keeps_the_recipients_parameters_and_their_optimizer():
    donor, recipient = shaken(Net()), Net()
    optimizer = torch.optim.SGD(recipient.parameters(), lr=0.1)
    held = dict(recipient.named_parameters())
    surgery.transplant(donor, recipient, {"encoder": "encoder"})
    assert all(held[name] is p for name, p in recipient.named_parameters())
    recipient(torch.rand(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    assert not torch.equal(recipient.encoder[0][0].weight, donor.encoder[0][0].weight)


def test_shared_layers_train_together_and_say_so():
    donor, recipient = Net(), Net()
    outcome = surgery.transplant(donor, recipient, {"stem": "stem"}, how="share")
    assert recipient.stem.weight is donor.stem.weight
    assert any("tied from now on" in note for note in outcome.plan.notes)
    outcome.undo()
    assert recipient.stem.weight is not donor.stem.weight


def test_what_moved_is_left_on_meta():
    donor, recipient = Net(), Net()
    weight = donor.stem.weight
    outcome = surgery.transplant(donor, recipient, {"stem": "stem"}, how="move")
    assert recipient.stem.weight is weight
    assert donor.stem.weight.is_meta
    assert donor.stem.weight.shape == weight.shape
    assert isinstance(donor.stem.weight, nn.Parameter)
    assert not donor.head.weight.is_meta
    with torch.no_grad():
        weight.add_(1)
    outcome.undo()
    assert donor.stem.weight is weight
    assert not recipient.stem.weight.is_meta


def test_a_move_that_fails_in_the_donor_is_taken_back_in_the_recipient():
    class Stubborn(nn.Conv2d):
        set_up = False

        def __setattr__(self, name: str, value: Any) -> None:
            if self.set_up and isinstance(value, nn.Parameter) and value.is_meta:
                raise RuntimeError("never")
            super().__setattr__(name, value)

    donor, recipient = Net(), Net()
    donor.stem = Stubborn(3, 4, 3)
    recipient.stem = Stubborn(3, 4, 3)
    donor.stem.set_up = True
    before = versionless(state_of(recipient, donor))
    with pytest.raises(surgery.errors.SurgeryError):
        surgery.transplant(donor, recipient, {"stem": "stem"}, how="move", differences="allow")
    assert not differences(before, versionless(state_of(recipient, donor)))


def test_two_donors_one_after_another_and_back_in_order():
    one, two, recipient = shaken(Net()), shaken(Net()), Net()
    before = contents(recipient)
    first = surgery.transplant(one, recipient, {"stem": "stem"})
    between = contents(recipient)
    second = surgery.transplant(two, recipient, {"stem": "stem", "head": "head"})
    with pytest.raises(UndoError, match="was done after it"):
        first.undo()
    assert contents(recipient)["stem.weight"] == content(two.stem.weight)
    second.undo()
    assert contents(recipient) == between
    first.undo()
    assert contents(recipient) == before


def test_the_undo_of_a_donor_that_moved_waits_for_what_came_after():
    donor, recipient = Net(), Net()
    first = surgery.transplant(donor, recipient, {"stem": "stem"}, how="move")
    later = surgery.freeze(donor, "head")
    with pytest.raises(UndoError, match="freeze"):
        first.undo()
    assert donor.stem.weight.is_meta
    later.undo()
    first.undo()
    assert not donor.stem.weight.is_meta


@pytest.mark.parametrize("how", HOWS)
def test_a_dry_run_touches_nothing(how: Any):
    donor, recipient = Net(), Net()
    before = state_of(recipient, donor)
    outcome = surgery.transplant(donor, recipient, {"stem": "stem"}, how=how, dry_run=True)
    assert [step.address for step in outcome.plan.steps] == ["stem.weight", "stem.bias"]
    assert not differences(before, state_of(recipient, donor))


def test_committing_lets_the_old_values_go():
    donor, recipient = shaken(Net()), Net()
    outcome = surgery.transplant(donor, recipient, {"stem": "stem"})
    assert outcome.old.keys() == outcome.new.keys() == {"stem.weight", "stem.bias"}
    outcome.commit()
    assert not outcome.old
    with pytest.raises(UndoError, match="committed"):
        outcome.undo()


class Tied(nn.Module):
    """An output layer that is its embedding."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5, bias=False)
        if tie:
            self.output.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.output(self.embedding(x))


@pytest.mark.parametrize("how", ["copy", "share"])
def test_ties_stay_ties(how: Any):
    donor, recipient = Tied(), Tied()
    surgery.transplant(donor, recipient, how=how)
    assert recipient.output.weight is recipient.embedding.weight
    assert torch.equal(recipient.output.weight, donor.output.weight)
    untied = Tied(tie=False)
    outcome = surgery.transplant(untied, recipient, {"embedding": "embedding"}, how=how)
    assert recipient.output.weight is recipient.embedding.weight
    assert any("output.weight changes too" in note for note in outcome.plan.notes)


def test_what_lies_in_one_memory_is_one_tensor():
    recipient, donor = Tied(tie=False), shaken(Tied())
    recipient.output.weight.data = recipient.embedding.weight.data
    outcome = surgery.transplant(donor, recipient, {"embedding": "embedding"})
    assert torch.equal(recipient.output.weight, donor.embedding.weight)
    assert recipient.output.weight.data_ptr() == recipient.embedding.weight.data_ptr()
    outcome.undo()
    assert recipient.output.weight.data_ptr() == recipient.embedding.weight.data_ptr()
    assert not torch.equal(recipient.output.weight, donor.embedding.weight)


def test_dtype_device_flags_and_mode_of_the_recipient_stay():
    donor, recipient = shaken(Net()), Net().half().eval()
    recipient.stem.requires_grad_(False)
    outcome = surgery.transplant(donor, recipient, {"stem": "stem"})
    assert recipient.stem.weight.dtype == torch.half
    assert not recipient.stem.weight.requires_grad
    assert torch.equal(recipient.stem.weight, donor.stem.weight.half())
    assert any("float32 -> torch.float16 rounds" in note for note in outcome.plan.notes)
    assert "torch.float32 -> torch.float16" in outcome.plan.steps[0].after
    exact = surgery.transplant(recipient, donor, {"stem": "stem"})
    assert not exact.plan.notes


def test_a_wrapped_recipient_is_reached_through_where_that_is_allowed():
    donor, recipient = shaken(Net()), Net()
    compiled = torch.compile(recipient, backend="eager")
    outcome = surgery.transplant(nn.DataParallel(donor), compiled, {"stem": "stem"})
    assert outcome.model is compiled
    assert torch.equal(recipient.stem.weight, donor.stem.weight)


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_is_a_donor(nested: bool):
    donor, recipient = shaken(Net()), Net()
    state: dict[str, Any] = donor.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    source = {"state_dict": state, "epoch": 3} if nested else state
    outcome = surgery.transplant(source, recipient, {"stem": "stem", "encoder.*": "encoder.*"})
    assert torch.equal(recipient.encoder[1][1].running_var, donor.encoder[1][1].running_var)
    assert torch.equal(recipient.stem.weight, donor.stem.weight)
    assert any("no classes" in note for note in outcome.plan.notes)
    with torch.no_grad():
        recipient.stem.weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_is_a_donor_and_goes_again(name: str, tmp_path: Path):
    donor, recipient = shaken(Net()), Net()
    path = tmp_path / name
    save: Any = torch.save if name.endswith("pth") else save_file
    save(donor.state_dict(), path)
    before = contents(recipient)
    outcome = surgery.transplant(path, recipient, {"encoder": "encoder"})
    path.write_bytes(b"")
    for ours, theirs in zip(recipient.encoder.buffers(), donor.encoder.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(
        recipient.encoder.parameters(), donor.encoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    outcome.undo()
    assert contents(recipient) == before


def test_a_checkpoint_without_counters_is_a_whole_one():
    state = {k: v for k, v in Net().state_dict().items() if "num_batches" not in k}
    recipient = Net()
    surgery.transplant(state, recipient, {"encoder": "encoder"})
    assert torch.equal(recipient.encoder[0][0].weight, state["encoder.0.0.weight"])


def test_parts_of_one_model_go_to_others():
    model = shaken(Net())
    surgery.transplant(model, model, {"encoder.0": "encoder.1"})
    assert torch.equal(model.encoder[0][0].weight, model.encoder[1][0].weight)
    assert model.encoder[0][0].weight is not model.encoder[1][0].weight


@pytest.mark.parametrize(
    ("policy", "arrives"),
    [
        ("skip", False),
        (lambda address, theirs, ours: None, False),
        (lambda address, theirs, ours: theirs[: len(ours)], True),
        ({"head": "skip", "*": "error"}, False),
    ],
)
def test_other_shapes_by_policy(policy: Any, arrives: bool):
    donor, recipient = shaken(Net()), Net()
    donor.head = nn.Linear(4, 7)
    before, theirs = content(recipient.head.weight), donor.head.weight
    outcome = surgery.transplant(donor, recipient, on_mismatch=policy)
    assert torch.equal(recipient.stem.weight, donor.stem.weight)
    if arrives:
        assert torch.equal(recipient.head.weight, theirs[:2])
        assert any("out_features" in note for note in outcome.plan.notes)
    else:
        assert content(recipient.head.weight) == before
        assert any("skipped: head.weight" in note for note in outcome.plan.notes)


def test_frozen_layers_stay_in_eval_mode_and_come_back():
    donor, recipient = shaken(Net()), Net()
    outcome = surgery.transplant(donor, recipient, {"encoder.0": "encoder.0"}, freeze=True)
    recipient.train()
    statistics = content(recipient.encoder[0][1].running_mean)
    recipient(torch.rand(2, 3, 9, 9))
    assert content(recipient.encoder[0][1].running_mean) == statistics
    assert recipient.encoder[1][1].training
    outcome.undo()
    assert recipient.train().encoder[0][1].training


def test_no_random_numbers_are_drawn():
    donor, recipient = shaken(Net()), Net()
    state = torch.get_rng_state()
    surgery.transplant(donor, recipient, freeze=True)
    assert torch.equal(torch.get_rng_state(), state)
