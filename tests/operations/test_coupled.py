"""What depends on the classes without an axis that says so is refused, or at least said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from tests.hostile import Headed, vectors
from tests.hostile_unseen import UNSEEN
from tests.operations.state import differences, state_of


class Described(Headed):
    """Gives a vector for the winning class, looked up in a table."""

    def __init__(self, rows: int = 5, by_index: bool = False) -> None:
        super().__init__()
        self.table, self.by_index = nn.Embedding(rows, 6), by_index

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        winner = logits.topk(2).indices[:, 0]
        return logits, self.table.weight[winner] if self.by_index else self.table(winner)


@pytest.mark.parametrize("by_index", [False, True])
def test_a_table_looked_up_by_the_winning_class_has_a_row_for_each(by_index: bool) -> None:
    model = Described(by_index=by_index)
    before = state_of(model)
    with pytest.raises(PlanError, match="looked up in a table") as raised:
        surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert not differences(before, state_of(model))
    assert raised.value.where == "table.weight"
    assert raised.value.expected == "at least 7 rows"
    assert raised.value.found == "5 rows, for the 5 classes of fc"
    assert "{'table': module}" in str(raised.value.fix)
    outcome = surgery.replace_head(model, 3, heads="fc", example=vectors()())
    assert outcome.plan.notes == ("table.weight is looked up by class and keeps its 5 rows",)
    logits, vector = model(vectors()())
    assert (logits.shape, vector.shape) == ((2, 3), (2, 6))


def test_a_larger_table_needs_no_word() -> None:
    outcome = surgery.replace_head(Described(rows=9), 7, heads="fc", example=vectors()())
    assert outcome.plan.notes == ()


class Selected(nn.Module):
    """Chooses a place or a class from the scores of every place, and looks it up in a table."""

    def __init__(self, how: str, rows: int) -> None:
        super().__init__()
        self.how = how
        self.trunk, self.fc = nn.Linear(8, 16), nn.Linear(16, 5)
        self.table = nn.Parameter(torch.randn(1, rows, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.fc(self.trunk(x).relu())
        best, classes = scores.max(-1)
        strongest = best.topk(2, 1)
        places = {
            "strongest": strongest.indices,
            "sorted": best.sort(1).indices[:, :2],
            "by class": scores.argmax(1)[:, :2],
            "in order": classes.sort(1).indices[:, :2],
            "class": classes[:, :2],
            "class of the strongest": classes.gather(1, strongest.indices),
            "class among the first": classes.sort(1).values[:, :2],
        }[self.how]
        table = self.table.expand(len(x), -1, -1)
        return scores, table.gather(1, places[..., None].expand(-1, -1, 4))


@pytest.mark.parametrize("how", ["strongest", "sorted", "by class", "in order"])
def test_a_table_of_places_is_looked_up_by_no_class(how: str) -> None:
    x = torch.randn(2, 3, 8)
    model = Selected(how, rows=3)
    outcome = surgery.replace_head(model, 7, heads="fc", example=x)
    assert outcome.plan.notes == ()
    assert [tuple(each.shape) for each in model(x)] == [(2, 3, 7), (2, 2, 4)]


@pytest.mark.parametrize("how", ["class", "class of the strongest", "class among the first"])
def test_a_table_of_classes_is_one_however_the_class_is_chosen(how: str) -> None:
    x = torch.randn(2, 3, 8)
    with pytest.raises(PlanError, match="looked up in a table") as raised:
        surgery.replace_head(Selected(how, rows=5), 7, heads="fc", example=x)
    assert raised.value.found == "5 rows, for the 5 classes of fc"
    surgery.replace_head(Selected(how, rows=7), 7, heads="fc", example=x)


def test_a_decoder_that_reads_back_its_own_words_cannot_learn_more_of_them() -> None:
    truth = UNSEEN["greedy_decoder"]
    model = truth.make()
    surgery.replace_head(model, 7, heads="out", example=truth.example()).undo()
    with pytest.raises(PlanError, match="too few rows for 50 classes"):
        surgery.replace_head(model, 50, heads="out", example=truth.example())


class Transitions(Headed):
    """Scores of every pair of neighbouring classes."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return logits, (logits[:, :, None] + self.pairs).logsumexp(1)


def test_something_for_every_pair_of_classes_is_refused() -> None:
    with pytest.raises(PlanError, match="for every pair of classes") as raised:
        surgery.replace_head(Transitions(), 7, heads="fc", example=vectors()())
    assert (raised.value.where, raised.value.found) == ("pairs", "float32[5, 5]")


class Placed(nn.Module):
    """An offset for each class and each place; there are as many places as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 5, 1)
        self.offset = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x)) + self.offset


def test_an_axis_that_the_data_has_too_is_no_pair() -> None:
    model = Placed()
    surgery.replace_head(model, 7, heads="head", example=torch.randn(2, 3, 5))
    assert model.offset.shape == (7, 5)
    assert model(torch.randn(2, 3, 5)).shape == (2, 7, 5)


class Elsewhere(Headed):
    """A decoder that runs outside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.transitions = nn.Parameter(torch.randn(5, 5))
        self.decoder.start = nn.Parameter(torch.randn(5))
        self.decoder.other = nn.Parameter(torch.randn(4))


def test_what_forward_does_not_use_is_said_where_it_may_be_about_the_classes() -> None:
    model = Elsewhere()
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert outcome.plan.notes == (
        "forward does not use decoder.transitions float32[5, 5], decoder.start float32[5], which "
        "may be about the classes",
    )
    assert model.decoder.transitions.shape == (5, 5)
    outcome.undo()
    same = surgery.replace_head(model, 5, heads="fc", example=vectors()())
    assert same.plan.notes == ()


class Best(Headed):
    """The three best scores."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits.topk(3).values


def test_too_few_classes_to_choose_from_are_refused_while_planning() -> None:
    model = Best()
    with pytest.raises(PlanError, match="no longer runs") as raised:
        surgery.replace_head(model, 2, heads="fc", example=vectors()())
    assert "k not in range" in raised.value.what or "out of range" in raised.value.what
    surgery.replace_head(model, 3, heads="fc", example=vectors()())
    assert [out.shape for out in model(vectors()())] == [(2, 3), (2, 3)]


class Sliced(Headed):
    """The scores of the first four classes, or of as many as there are."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits[:, :4]


def test_too_few_classes_for_an_output_are_refused_while_planning() -> None:
    model = Sliced()
    with pytest.raises(PlanError, match="another form than with more") as raised:
        surgery.replace_head(model, 2, heads="fc", example=vectors()())
    assert raised.value.where == "output[1] (eval)"
    assert (raised.value.expected, raised.value.found) == ("float32[2, 4]", "float32[2, 2]")
    surgery.replace_head(model, 4, heads="fc", example=vectors()())


def test_hooks_on_a_gradient_stay_with_the_old_tensor_and_that_is_said() -> None:
    model = Headed()
    seen: list[Tensor] = []
    model.fc.weight.register_hook(lambda grad: seen.append(grad))
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert outcome.plan.notes == (
        "the hooks on the gradient of fc.weight stay with the old tensor",
    )
    model(vectors()()).sum().backward()
    assert seen == []
    outcome.undo()(vectors()()).sum().backward()
    assert len(seen) == 1


class Marked(nn.Parameter):
    """A parameter of another class, in name only."""


def test_the_class_and_the_marks_of_a_parameter_carry_over() -> None:
    model = Headed()
    model.fc.weight = Marked(torch.randn(5, 8))
    model.fc.weight.no_decay = True
    surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert type(model.fc.weight) is Marked
    assert model.fc.weight.no_decay
    assert model.fc.weight.requires_grad
    assert type(model.fc.bias) is nn.Parameter
