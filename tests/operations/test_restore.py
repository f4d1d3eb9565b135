"""What `save` wrote, `restore` makes again: exactly, whatever was done to the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery import tree
from surgery.errors import SurgeryError
from surgery.operations.made import operations_on
from surgery.operations.names import remember
from surgery.operations.norms import StaysInEval
from surgery.operations.plan import Outcome
from tests.operations.cases import CASES, Branches, build
from tests.operations.restored import assert_answers, assert_same, facts, modes, restored
from tests.operations.state import differences, state_of
from tests.strategies import Classifier, classifiers, module_trees

pytestmark = pytest.mark.filterwarnings("ignore::surgery.errors.UncorroboratedWarning")

EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


@st.composite
def _operated(draw: st.DrawFn) -> tuple[Classifier, nn.Module, int]:
    """A classifier, the model that a few operations made of it, and how many were carried out."""
    drawn = draw(classifiers())
    model, done = drawn.model, 0
    head = next(iter(drawn.truth.heads))
    names = [address for address, _ in model.named_parameters()]
    given = {"example": drawn.example, "heads": head}
    operations: dict[str, Callable[[], Outcome]] = {
        "resize": lambda: surgery.replace_head(model, draw(st.integers(1, 12)), **given),
        "name": lambda: surgery.replace_head(model, classes=["a", "b", "c"], **given),
        "deepen": lambda: surgery.replace_head(
            model, draw(st.integers(1, 5)), hidden=[draw(st.integers(1, 6))], dropout=0.25, **given
        ),
        "remove": lambda: surgery.remove_head(model, **given),
        "freeze": lambda: surgery.freeze(model, draw(st.sampled_from(names))),
        "freeze all": lambda: surgery.freeze(model, except_=head),
        "unfreeze": lambda: surgery.unfreeze(model, draw(st.sampled_from(names))),
    }
    for name in draw(st.lists(st.sampled_from(sorted(operations)), max_size=4)):
        try:
            outcome = operations[name]()
        except SurgeryError:
            continue
        if draw(st.integers(0, 4)) == 0:
            outcome.undo()
            continue
        model = outcome.model
        done += 1
    if draw(st.booleans()):
        model.eval()
    return drawn, model, done


@given(_operated())
@settings(max_examples=40)
def test_a_model_comes_back_whatever_was_done_to_it(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Classifier, nn.Module, int]
) -> None:
    drawn, model, done = case
    folder = tmp_path_factory.mktemp("saved")
    state = torch.get_rng_state()
    outcome = restored(model, drawn.truth.build, folder)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    again = outcome.model
    assert all(check.passed for check in outcome.checks)
    assert modes(again) == modes(model)
    assert_same(model, again)
    assert_answers(model, again, drawn.example)
    titles = [made.title for made in operations_on(model)]
    assert len(titles) == done
    if done:
        assert [made.title for made in operations_on(again)] == titles
    # What comes back can be saved again, and is the same file.
    first = (folder / "model.safetensors").read_bytes()
    again.train(model.training)
    if done and modes(again) == modes(model):
        surgery.save(again, folder / "again.safetensors")
        model.train(again.training)
        surgery.save(model, folder / "model.safetensors", overwrite=True)
        first = (folder / "model.safetensors").read_bytes()
        assert (folder / "again.safetensors").read_bytes() == first


@given(module_trees(), st.data())
@settings(max_examples=40)
def test_any_tree_of_modules_comes_back(
    tmp_path_factory: pytest.TempPathFactory, model: nn.Module, data: st.DataObject
) -> None:
    """Shared modules, ties, dtypes, strides, frozen tensors and modes, changed by hand."""
    assume(model.state_dict())
    target = copy.deepcopy(model)
    for entry in tree.index(model).of_kind("parameter"):
        entry.tensor.requires_grad_(data.draw(st.booleans()))
        with torch.no_grad():
            entry.tensor.fill_(data.draw(st.integers(-3, 3)))
    for module in model.modules():
        module.training = data.draw(st.booleans())
        if data.draw(st.integers(0, 5)) == 0:
            module.train = StaysInEval(module)  # type: ignore[method-assign]
            module.training = False
    again = restored(model, lambda: copy.deepcopy(target), tmp_path_factory.mktemp("saved")).model
    assert modes(again) == modes(model)
    assert_same(model, again)


@given(_operated())
@settings(max_examples=15)
def test_a_model_that_is_there_becomes_the_saved_one_and_goes_back(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Classifier, nn.Module, int]
) -> None:
    drawn, model, _ = case
    here = drawn.truth.make(seed=1)
    before, held = state_of(here), list(here.parameters())
    outcome = restored(model, here, tmp_path_factory.mktemp("saved"))
    assert_same(model, outcome.model)
    assert_answers(model, copy.deepcopy(outcome.model), drawn.example)
    assert outcome.undo() is here
    assert not [d for d in differences(before, state_of(here)) if "version" not in d]
    assert all(a is b for a, b in zip(held, here.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "meddling setter"])
def test_every_case_of_an_operation_comes_back(tmp_path: Path, name: str) -> None:
    model = build(name)
    changed = CASES[name].operate(model).model
    if name == "modules":
        # The user's own hooks are code.
        assert "hooks are not saved" in " ".join(surgery.save(changed, tmp_path / "a").notes)
    again = restored(changed, CASES[name].build, tmp_path).model
    assert_same(changed, again)
    assert_answers(changed, again, CASES[name].example())


def test_facts_follow_wherever_they_hang(tmp_path: Path) -> None:
    model = Branches()
    surgery.replace_head(model, classes=["x", "y"], example=EXAMPLE)
    again: Any = restored(model, Branches, tmp_path).model
    assert again.num_classes == again.config.num_labels == 2
    assert again.config.id2label == {0: "x", 1: "y"}
    assert (again.fc.out_features, again.behind.num_features) == (2, 2)


def test_a_setter_that_reaches_far_is_restored_by_what_it_left(tmp_path: Path) -> None:
    case = CASES["meddling setter"]
    model: Any = build("meddling setter")
    case.operate(model)
    again: Any = restored(model, case.build, tmp_path).model
    assert (again.num_classes, again.trunk.seen_classes) == (7, 7)
    assert (again.sizes, again.log) == (model.sizes, model.log)


def _changed_by_hand(model: Any) -> None:
    model.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 5, bias=False))
    model.trunk[2] = nn.GELU(approximate="tanh")
    model.aux1[2].weight = nn.Parameter(torch.randn(5, 6).half(), requires_grad=False)
    model.trunk[1].eps = 0.5
    model.note = ("by", {"hand": None}, {3, 4}, float("nan"), torch.Size([2]), torch.float16)
    remember(model, ["a", "b", "c", "d", "e"])


def test_changes_by_hand_come_back_as_well_and_in_a_copy(tmp_path: Path) -> None:
    model: Any = Branches()
    _changed_by_hand(model)
    for changed in (model, copy.deepcopy(model)):
        again: Any = restored(changed, Branches, tmp_path).model
        assert_same(changed, again)
        assert repr(again) == repr(changed)
        assert again.trunk[1].eps == 0.5
        assert repr(again.note) == repr(changed.note)


class Tied(nn.Module):
    """An embedding, and what answers with it."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.trunk = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.out = nn.Linear(4, 6, bias=False)
        if tied:
            self.out.weight = self.embedding.weight
            self.trunk[1] = self.trunk[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_ties_are_those_of_the_saved_model(
    tmp_path: Path, tied: bool, target: bool, live: bool
) -> None:
    model = Tied(tied)
    made = Tied(target) if live else lambda: Tied(target)
    again = restored(model, made, tmp_path).model
    assert_same(model, again)
    assert len(list(again.parameters())) == len(list(model.parameters()))
    surgery.weights.read(tmp_path / "model.safetensors").read("out.weight")


def test_a_tie_between_a_part_that_is_made_anew_and_one_that_stays(tmp_path: Path) -> None:
    model = Tied()
    model.trunk[1] = nn.Sequential(nn.Linear(4, 4))  # type: ignore[assignment]
    model.trunk[1][0].weight = model.trunk[0].weight  # type: ignore[index]
    for target in (Tied, Tied()):
        again: Any = restored(model, target, tmp_path).model
        assert_same(model, again)
        assert again.trunk[1][0].weight is again.trunk[0].weight


def test_memory_layouts_come_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))

    model = make().to(memory_format=torch.channels_last)
    again = restored(model, make, tmp_path).model
    assert_same(model, again)
    back = restored(make(), lambda: make().to(memory_format=torch.channels_last), tmp_path).model
    assert back[0].weight.is_contiguous()  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Branches().to(dtype)
    again = restored(model, Branches, tmp_path).model
    assert_same(model, again)


class Loose(nn.Module):
    """A buffer that is in no state dict, of the size of the classes."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(8, classes)
        self.register_buffer("scale", torch.ones(classes), persistent=False)
        self.register_buffer("mean", torch.full((8,), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x - self.mean) * self.scale


def test_buffers_in_no_state_dict_are_kept_where_an_operation_changed_them(tmp_path: Path) -> None:
    model = Loose()
    surgery.replace_head(model, 3, heads="fc", example=EXAMPLE)
    again = restored(model, Loose, tmp_path).model
    stored = surgery.weights.read(tmp_path / "model.safetensors").tensors
    assert "mean" not in stored
    assert stored["scale"].shape == (3,)
    assert_same(model, again)
    assert_answers(model, again, EXAMPLE)


def test_undone_operations_vanish_and_committed_ones_stay(tmp_path: Path) -> None:
    model = Branches()
    surgery.replace_head(model, 7, example=EXAMPLE).undo()
    surgery.freeze(model, "trunk").commit()
    saved = surgery.save(model, tmp_path / "a")
    assert saved.operations == ("freeze('trunk')",)
    calls = [made.call for made in operations_on(surgery.restore(Branches, saved.path).model)]
    assert calls[0]["arguments"] == {"patterns": ["trunk"], "except_": [], "norm": "eval"}
    assert surgery.save(copy.deepcopy(model), tmp_path / "b").operations == ()


def test_a_call_can_be_made_again(tmp_path: Path) -> None:
    model = Branches()
    surgery.replace_head(model, classes=["x", "y"], hidden=[3], heads="fc", example=EXAMPLE)
    path = surgery.save(model, tmp_path / "a").path
    made = operations_on(surgery.restore(Branches, path).model)[0].call
    assert made is not None
    other = Branches()
    verb = getattr(surgery, made["verb"])
    verb(other, **made["arguments"], example=EXAMPLE)
    assert facts(other)["modules"] == facts(model)["modules"]


def test_the_mode_and_place_of_a_model_that_is_there_stay(tmp_path: Path) -> None:
    model = Branches().eval()
    here = Branches().train()
    again = restored(model, here, tmp_path)
    assert again.model is here
    assert here.training
    plan = surgery.restore(here, tmp_path / "model.safetensors", dry_run=True).plan
    assert all(step.kind == "values" for step in plan.steps)


def test_a_model_on_meta_gets_tensors_of_its_own(tmp_path: Path) -> None:
    model = Branches()
    with torch.device("meta"):
        here = Branches()
    again = restored(model, here, tmp_path).model
    assert_same(model, again)


def test_a_mapped_file_gives_the_same_model(tmp_path: Path) -> None:
    model = Branches()
    surgery.replace_head(model, 4, example=EXAMPLE)
    again = restored(model, Branches, tmp_path, mmap=True).model
    assert_same(model, again)
    again.fc.weight.data.zero_()  # type: ignore[union-attr, operator]
    assert surgery.weights.read(tmp_path / "model.safetensors").read("fc.weight").any()


def test_names_and_modules_are_targets(tmp_path: Path) -> None:
    path = surgery.save(Branches(), tmp_path / "a").path
    again = surgery.restore("tests.operations.cases:Branches", path).model
    assert isinstance(again, Branches)
    linear = surgery.save(nn.Linear(3, 2), tmp_path / "b").path
    assert surgery.restore(nn.Linear, linear, in_features=3, out_features=2).model.weight.shape
