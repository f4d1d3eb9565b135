"""Classes that stay keep their rows, bit for bit, and answer as before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.families import Family, HeadClaim
from surgery.families.registry import Registry
from tests.hostile_facts import Labels

NONE = Registry.of()


class Classifier(nn.Module):
    """A trunk, a head, and a bias per class behind it."""

    def __init__(self, head: nn.Module, classes: int, behind: bool = False) -> None:
        super().__init__()
        self.num_classes = classes
        self.trunk = nn.Linear(6, 6)
        self.head = head
        self.prior = nn.Parameter(torch.randn(classes)) if behind else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.trunk(x)
        if isinstance(self.head, nn.Conv2d):
            x = x[:, :, None, None]
        logits = self.head(x).flatten(1)
        return logits if self.prior is None else logits + self.prior


def linear(classes: int = 5) -> Classifier:
    return Classifier(nn.Linear(6, classes), classes)


def integers(model: nn.Module) -> None:
    """Small whole numbers, on which sums of any order are exact."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))


HEADS = {
    "linear": linear,
    "convolution": lambda: Classifier(nn.Conv2d(6, 5, 1), 5),
    "weight norm": lambda: Classifier(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), 5
    ),
    "prior behind": lambda: Classifier(nn.Linear(6, 5), 5, behind=True),
}


@pytest.mark.parametrize("name", HEADS)
def test_kept_classes_answer_as_before(name: str) -> None:
    model = HEADS[name]().eval()
    x = torch.randn(4, 6)
    with torch.no_grad():
        before = model(x)
        surgery.replace_head(model, 3, keep={0: 4, 2: 1}, example=x, registry=NONE)
        after = model(x)
    assert torch.allclose(after[:, 0], before[:, 4], atol=1e-5)
    assert torch.allclose(after[:, 2], before[:, 1], atol=1e-5)
    assert not torch.allclose(after[:, 1], before[:, 1], atol=1e-5)


@given(st.data())
def test_exactly_on_whole_numbers_and_within_rounding_elsewhere(data: st.DataObject) -> None:
    old, new = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    keep = data.draw(st.dictionaries(st.integers(0, new - 1), st.integers(0, old - 1)))
    exact, real = linear(old).eval(), linear(old).eval()
    integers(exact)
    x = torch.randint(-4, 5, (3, 6)).float()
    with torch.no_grad():
        wanted, about = exact(x), real(x)
        for model in (exact, real):
            surgery.replace_head(model, new, keep=keep, example=x, registry=NONE)
        for to, source in keep.items():
            assert torch.equal(exact(x)[:, to], wanted[:, source])
            bound = 6 * torch.finfo(torch.float32).eps * 64
            assert (real(x)[:, to] - about[:, source]).abs().max() <= bound


def test_rows_are_the_same_bits_and_undo_brings_all_back() -> None:
    model = linear()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outcome = surgery.replace_head(
        model, 4, keep={1: 3, 3: [0, 2]}, example=torch.zeros(2, 6), registry=NONE
    )
    assert torch.equal(model.head.weight[1], before["head.weight"][3])
    assert torch.equal(model.head.bias[1], before["head.bias"][3])
    mean = before["head.weight"][[0, 2]].mean(0)
    assert torch.equal(model.head.weight[3], mean)
    assert "2 of 4 classes keep their entries in 'head'" in outcome.plan.notes
    outcome.undo()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_names_of_the_configuration_tell_which_classes_stay() -> None:
    model = linear(3)
    model.config = Labels(3)
    model.config.id2label = {0: "cat", 1: "dog", 2: "fish"}
    model.config.label2id = {"cat": 0, "dog": 1, "fish": 2}
    weight = model.head.weight.detach().clone()
    surgery.replace_head(
        model, classes=["bird", "fish", "cat"], keep="all", example=torch.zeros(2, 6), registry=NONE
    )
    assert torch.equal(model.head.weight[1], weight[2])
    assert torch.equal(model.head.weight[2], weight[0])
    assert model.config.id2label == {0: "bird", 1: "fish", 2: "cat"}
    assert model.config.label2id == {"bird": 0, "fish": 1, "cat": 2}


def test_new_names_for_the_same_number_of_classes_are_stored() -> None:
    model = linear(3)
    model.config = Labels(3)
    surgery.replace_head(
        model,
        classes=["a", "b", "c"],
        keep="all",
        old_classes=["c", "b", "a"],
        example=torch.zeros(2, 6),
        registry=NONE,
    )
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_old_names_may_be_given_and_may_repeat() -> None:
    model = linear(3)
    weight = model.head.weight.detach().clone()
    surgery.replace_head(
        model,
        classes=["dog", "cat"],
        keep={"cat": "cat", "dog": 2},
        old_classes=["N/A", "cat", "N/A"],
        example=torch.zeros(2, 6),
        registry=NONE,
    )
    assert torch.equal(model.head.weight[1], weight[1])
    assert torch.equal(model.head.weight[0], weight[2])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"keep": {0: 9}}, "no old class 9"),
        ({"keep": {0: 0}, "hidden": (4,)}, "nothing in common"),
        ({"keep": "all", "old_classes": ["a", "b"]}, "as many old names"),
        ({"keep": "all", "old_classes": "abcde"}, "list of strings"),
        ({"old_classes": "abcde"}, "list of strings"),
        ({"old_classes": ["nonsense"]}, "as many old names"),
        ({"keep": {0: "cat"}}, "no old class has it"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_touched(arguments: dict, says: str) -> None:
    model = linear()
    weight = model.head.weight
    with pytest.raises(ArgumentError, match=says):
        surgery.replace_head(model, 3, example=torch.zeros(2, 6), registry=NONE, **arguments)
    assert model.head.weight is weight
    assert model.num_classes == 5


def test_the_background_stays_whatever_it_is_called() -> None:
    claims = (HeadClaim("head"),)
    for background, kept in (("__background__", 2), ("", 1)):
        family = Family("c", (f"{__name__}.Classifier",), heads=claims, background=background)
        model = linear()
        before = model.head.weight.detach().clone()
        outcome = surgery.replace_head(
            model,
            classes=["background", "cat"],
            keep="all",
            old_classes=["__background__", "dog", "cat", "N/A", "N/A"],
            example=torch.zeros(2, 6),
            registry=Registry.of(family),
        )
        assert torch.equal(model.head.weight[1], before[2])
        assert torch.equal(model.head.weight[0], before[0]) is bool(background)
        assert f"{kept} of 2 classes keep their entries in 'head'" in outcome.plan.notes


def test_old_names_that_nothing_uses_are_said() -> None:
    x, names = torch.zeros(2, 6), list("abcde")
    for keep, said in ((None, 1), ("all", 0)):
        model = linear()
        outcome = surgery.replace_head(
            model, classes=["b"], keep=keep, old_classes=names, example=x, registry=NONE
        )
        assert sum("old_classes is not used" in note for note in outcome.plan.notes) == said


class Uncopyable:
    """Held by every layer, as quantisation does with its configuration."""

    def __deepcopy__(self, memo: object) -> Uncopyable:
        raise ValueError("no")


def test_a_note_is_said_once() -> None:
    model = linear()
    for module in model.modules():
        module.settings = Uncopyable()
    x = torch.zeros(2, 6)
    graph = surgery.record(model, x)
    assert sum("cannot be copied" in spot for spot in graph.blind_spots) == 1
    for verb in (surgery.replace_head, surgery.remove_head):
        arguments = (3,) if verb is surgery.replace_head else ()
        notes = verb(model, *arguments, example=x, registry=NONE, dry_run=True).plan.notes
        assert sum("cannot be copied" in note for note in notes) == 1
        assert len(set(notes)) == len(notes)
