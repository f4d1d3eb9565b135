"""A head on a model that has none: every promise of an operation holds."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import NoHeadError, UndoError, VerificationError
from surgery.families.registry import Registry
from surgery.operations.attached import Headed
from tests.operations.restored import assert_same, restored
from tests.operations.state import differences, state_of
from tests.operations.trunks import TRUNKS, Place, Several, attach, run, vectors

NONE = Registry.of()
NAMES = sorted(TRUNKS)
every = pytest.mark.parametrize("name", NAMES)


@every
def test_there_is_no_head_before_and_one_afterwards(name: str):
    model, example = TRUNKS[name].build(), TRUNKS[name].example()
    found = surgery.find_heads(model, example, registry=NONE)
    assert not any(head.corroborated for head in found)
    outcome = attach(name, model, registry=NONE)
    heads = surgery.find_heads(outcome.model, example, registry=NONE)
    assert {head.num_classes for head in heads} == {4}
    assert run(outcome.model.eval(), name).shape == (len(run(outcome.model, name)), 4)
    assert all(check.passed for check in outcome.checks)
    assert (outcome.model is not model) is TRUNKS[name].wrapped
    assert {head.address for head in heads} == set(outcome.plan.probes)


@every
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_undone_it_is_the_same_to_the_bit(name: str, training: bool):
    model = TRUNKS[name].build().train(training)
    # A part in a mode of its own stays in it.
    next(iter(model.children())).train(not training)
    before = state_of(model)
    outcome = attach(name, model)
    assert outcome.model.training is training
    known = set(map(id, model.modules())) if TRUNKS[name].wrapped else set()
    modes = {m.training for m in outcome.model.modules() if id(m) not in known}
    assert training in modes
    for parameter in outcome.new.values():
        parameter.data.fill_(1)
    assert outcome.undo() is model
    assert not differences(before, state_of(model))


@every
def test_what_is_new_trains(name: str):
    outcome = attach(name, TRUNKS[name].build())
    run(outcome.model, name).sum().backward()
    assert outcome.new
    assert all(parameter.grad is not None for parameter in outcome.new.values())


@every
def test_a_dry_run_touches_nothing_and_draws_nothing(name: str):
    model = TRUNKS[name].build()
    before = state_of(model)
    outcome = attach(name, model, dry_run=True)
    assert outcome.model is model
    assert outcome.plan.steps
    assert not differences(before, state_of(model))


@every
def test_nothing_of_the_model_itself_moves(name: str):
    model = TRUNKS[name].build()
    tensors = {
        key: (value, value.clone()) for key, value in model.state_dict(keep_vars=True).items()
    }
    outcome = attach(name, model)
    prefix = "backbone." if TRUNKS[name].wrapped else ""
    after = outcome.model.state_dict(keep_vars=True)
    for key, (tensor, values) in tensors.items():
        assert after[prefix + key] is tensor
        assert torch.equal(tensor, values)
    number = sum(parameter.numel() for parameter in outcome.model.parameters())
    new = sum(parameter.numel() for parameter in outcome.new.values())
    assert outcome.plan.parameters == (number - new, number)


@every
def test_a_second_head_replaces_it_and_it_can_be_taken_off_and_put_back(name: str):
    model, example = TRUNKS[name].build(), TRUNKS[name].example()
    first = attach(name, model)
    given = {"example": example, "registry": NONE}
    if name == "pair of places":
        given["heads"] = ["one", "two"]
    second = surgery.replace_head(first.model, 3, **given)
    assert second.model is first.model
    assert run(second.model, name).shape[1:] == (3,)
    removed = surgery.remove_head(second.model, **given)
    assert run(removed.model, name).shape[1:] == (6,)
    again = surgery.replace_head(removed.model, 5, attach=True, example=example, registry=NONE)
    assert again.model is first.model
    assert run(again.model, name).shape[1:] == (5,)
    for outcome in (again, removed, second):
        outcome.undo()
    assert run(first.model, name).shape[1:] == (4,)
    assert first.undo() is model


def test_what_came_later_is_undone_first():
    model = Several()
    frozen = surgery.freeze(model, "trunk.*")
    outcome = attach("pooled", model)
    with pytest.raises(UndoError, match="attach"):
        frozen.undo()
    outcome.undo()
    frozen.undo()


@every
def test_copies_and_pickles_answer_the_same(name: str):
    outcome = attach(name, TRUNKS[name].build())
    model = outcome.model.eval()
    expected = run(model, name)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, name), expected)
        assert type(other) is type(model)


@every
def test_a_file_brings_it_back(name: str, tmp_path: Path):
    build = TRUNKS[name].build
    outcome = attach(name, build(), hidden=(5,))
    surgery.freeze(outcome.model, except_="heads", example=TRUNKS[name].example())
    model = outcome.model.eval()
    again = restored(model, build, tmp_path).model
    assert_same(model, again)
    assert torch.equal(run(again, name), run(model, name))
    onto = attach(name, build(), hidden=(5,)).model
    assert surgery.restore(onto, tmp_path / "model.safetensors").model is onto
    assert_same(model, onto)


def test_another_process_restores_it(tmp_path: Path):
    outcome = attach("pooled", Several(), classes=["a", "b", "c", "d"])
    model = outcome.model.eval()
    surgery.save(model, tmp_path / "model.safetensors")
    torch.save(run(model, "pooled"), tmp_path / "answer.pt")
    code = (
        "import sys, torch, surgery; from tests.operations.trunks import Several, run\n"
        "model = surgery.restore(Several, sys.argv[1] + '/model.safetensors').model\n"
        "assert model.classes == ['a', 'b', 'c', 'd'], model.classes\n"
        "assert torch.equal(run(model, 'pooled'), torch.load(sys.argv[1] + '/answer.pt'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.slow
@every
def test_it_compiles_and_exports(name: str):
    model = attach(name, TRUNKS[name].build()).model.eval()
    expected = run(model, name)
    torch._dynamo.reset()
    assert torch.allclose(run(torch.compile(model, backend="aot_eager"), name), expected)
    example = TRUNKS[name].example()
    args, kwargs = ((), example) if isinstance(example, dict) else ((example,), {})
    program = torch.export.export(model, args, kwargs)
    assert torch.allclose(program.module()(*args, **kwargs), expected)


def test_facts_follow_a_head_in_its_place():
    model = Place()
    outcome = attach("place", model, classes=["a", "b", "c"], number=None)
    assert model.num_classes == 3
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    outcome.undo()
    assert (model.num_classes, model.config.num_labels, model.config.id2label) == (0, 0, {})
    assert isinstance(model.fc, nn.Identity)


def test_a_number_that_was_left_behind_follows_as_well():
    model = Place()
    model.num_classes = 1000
    del model.config
    attach("place", model)
    assert model.num_classes == 4


def test_a_new_model_says_its_classes():
    outcome = attach("pooled", Several(), number=2, classes=["cat", "dog"])
    assert (outcome.model.num_classes, outcome.model.classes) == (2, ["cat", "dog"])
    surgery.replace_head(outcome.model, classes=["cat", "fox", "dog"], keep="all")
    assert (outcome.model.num_classes, outcome.model.classes) == (3, ["cat", "fox", "dog"])


def test_hidden_layers_dropout_init_and_generator_do_as_ever():
    def attached(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        made = attach(
            "images", TRUNKS["images"].build(), hidden=7, dropout=0.5, generator=generator
        )
        return made.model.head

    one, same, other = attached(0), attached(0), attached(1)
    assert [type(layer).__name__ for layer in one] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert torch.equal(one[3].weight, same[3].weight)
    assert not torch.equal(one[3].weight, other[3].weight)
    zeros = attach("place", Place(), init="zeros", trainable=False).model.fc
    assert not zeros.weight.any()
    assert not zeros.weight.requires_grad
    assert attach("place", Place(), trainable=None).model.fc.weight.requires_grad


@every
def test_a_head_is_where_the_model_is_and_of_its_dtype(name: str):
    with torch.device("meta"):
        model = TRUNKS[name].build().to(torch.float16)
    example = TRUNKS[name].example()
    if isinstance(example, torch.Tensor):
        example = example.half()
    outcome = attach(name, model, example=example)
    assert {p.dtype for p in outcome.new.values() if p.is_floating_point()} == {torch.float16}
    assert {p.device.type for p in outcome.model.parameters()} == {"meta"}


def test_hooks_of_the_model_stay_with_it():
    seen: list[str] = []
    model = Several()
    handle = model.register_forward_hook(lambda *_: seen.append("inside"))
    outcome = attach("pooled", model)
    seen.clear()
    run(outcome.model, "pooled")
    assert seen == ["inside"]
    handle.remove()
    run(outcome.model, "pooled")
    assert seen == ["inside"]


def test_a_compiled_model_is_reached_through():
    model = Place()
    compiled = torch.compile(model, backend="eager")
    assert attach("place", compiled).model is compiled
    assert isinstance(model.fc, nn.Linear)
    inside = Several()
    outcome = attach("pooled", torch.compile(inside, backend="eager"))
    assert outcome.model.backbone is inside


@every
def test_an_optimizer_follows(name: str):
    model = TRUNKS[name].build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    outcome = attach(name, model)
    assert not outcome.old
    assert len(outcome.new) == (4 if name == "pair of places" else 2)
    surgery.follow(optimizer, outcome)
    assert held(optimizer) == {id(p) for p in outcome.model.parameters()}
    outcome.undo()
    surgery.follow(optimizer, outcome)
    assert held(optimizer) == {id(p) for p in model.parameters()}


def held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_freezing_leaves_out_the_head():
    outcome = attach("images", TRUNKS["images"].build())
    surgery.freeze(outcome.model, except_="heads", example=TRUNKS["images"].example())
    trained = {name for name, p in outcome.model.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias"}


def test_what_fails_is_taken_back(monkeypatch: pytest.MonkeyPatch):
    model = Several()
    before = state_of(model)

    class Stubborn(Headed):
        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            found = super().forward(*args, **kwargs)
            return found if self.num_classes != 4 else found[:, :1]

    monkeypatch.setattr("surgery.operations.attach.Headed", Stubborn)
    with pytest.raises(VerificationError, match="outputs"):
        attach("pooled", model)
    assert not differences(before, state_of(model))


def test_a_head_taken_out_by_hand_is_put_back_in_its_place():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    model[2] = nn.Identity()
    with pytest.raises(NoHeadError, match="attach=True"):
        surgery.replace_head(nn.Sequential(nn.Flatten()), 3, example=vectors())
    outcome = surgery.replace_head(model, 3, attach=True, example=vectors())
    assert outcome.model is model
    assert isinstance(model[2], nn.Linear)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(2, 5),
    width=st.integers(1, 9),
    classes=st.integers(1, 12),
    sizes=st.lists(st.integers(3, 6), min_size=1, max_size=3),
    last=st.booleans(),
    pool=st.sampled_from([None, "mean", "max"]),
)
def test_whatever_the_size_the_output_is_samples_by_classes(
    samples: int, width: int, classes: int, sizes: list[int], last: bool, pool: str | None
):
    from tests.operations.trunks import Channels

    model = Channels(width, len(sizes), last)
    example = torch.randn(samples, 3, *sizes)
    # One axis of places with the channels behind is words, and nobody knows which is meant.
    how = "mean" if pool is None and last and len(sizes) == 1 and sizes[0] > 3 else pool
    if last and len(sizes) == 1:
        how = how or "mean"
    outcome = surgery.replace_head(model, classes, attach=True, pool=how, example=example)
    assert outcome.model(example).shape == (samples, classes)
    features = outcome.model.backbone.eval()(example)
    axes = [axis for axis in range(1, features.dim()) if features.dim() - 1 != axis or not last]
    axes = [axis for axis in axes if last or axis != 1]
    pooled = features.amax(axes) if how == "max" else features.mean(axes)
    expected = outcome.model.head(pooled)
    assert torch.allclose(outcome.model.eval()(example), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(2, 4),
    length=st.integers(1, 7),
    classes=st.integers(1, 12),
    pool=st.sampled_from(["mean", "max", "first", "last"]),
    data=st.data(),
)
def test_padding_changes_no_answer(
    samples: int, length: int, classes: int, pool: str, data: st.DataObject
):
    from tests.operations.trunks import Tokens

    ids = torch.randint(11, (samples, length))
    mask = torch.ones(samples, length, dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": mask}
    outcome = surgery.replace_head(Tokens(), classes, attach=True, pool=pool, example=example)
    model = outcome.model.eval()
    expected = model(ids)
    assert expected.shape == (samples, classes)
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    padded = nn.functional.pad(ids, (left, right), value=7)
    seen = nn.functional.pad(mask, (left, right))
    assert torch.allclose(model(padded, attention_mask=seen), expected, atol=1e-5)
    assert torch.allclose(model(padded, seen), expected, atol=1e-5)
