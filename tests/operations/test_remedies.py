"""What an error says to do next does no harm when it is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from tests.hostile import Headed, vectors
from tests.operations.state import differences, state_of


class Scaled(Headed):
    """A parameter for each class on the root itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Prior(Headed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_prior", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.log_prior


class Losing(Headed):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(5))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return self.loss(logits, labels), logits


class Behind(nn.Module):
    """Stands behind the head with more than what is in the way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.squash = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(x * self.scale)


LABELS = {"x": vectors()(), "labels": torch.zeros(2, dtype=torch.long)}
# Model, head, example, and what the remedy names.
IN_THE_WAY: dict[str, tuple[Callable[[], nn.Module], str, Any, str]] = {
    "a parameter of the root": (Scaled, "fc", vectors()(), "scale"),
    "a parameter of the head's owner": (
        lambda: nn.Sequential(Scaled(), nn.Softmax(1)),
        "0.fc",
        vectors()(),
        "0.scale",
    ),
    "a buffer of the root": (Prior, "fc", vectors()(), "log_prior"),
    "a loss": (Losing, "fc", LABELS, "loss.weight"),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_no_remedy_takes_out_more_than_what_is_in_the_way(name: str) -> None:
    make, head, example, named = IN_THE_WAY[name]
    model = make()
    before = state_of(model)
    with pytest.raises(PlanError, match="one entry a class") as raised:
        surgery.remove_head(model, heads=head, example=example)
    fix = str(raised.value.fix)
    assert "surgery.replace" not in fix
    assert f"make forward return the features, before {named}" in fix
    assert ("pass the example without labels" in fix) == isinstance(example, dict)
    assert not differences(before, state_of(model))


def test_a_layer_that_does_nothing_else_is_taken_out_as_the_remedy_says() -> None:
    model = nn.Sequential(Headed(), nn.PReLU(5))
    with pytest.raises(PlanError, match="one entry a class") as raised:
        surgery.remove_head(model, heads="0.fc", example=vectors()())
    code = re.search(r"surgery\.replace\(.*\)", str(raised.value.fix))
    assert code is not None
    exec(code[0], {"surgery": surgery, "torch": torch, "model": model})
    surgery.remove_head(model, heads="0.fc", example=vectors()())
    assert model(vectors()()).shape == (2, 8)


def test_a_layer_with_other_parts_is_left_in_place() -> None:
    with pytest.raises(PlanError) as raised:
        surgery.remove_head(nn.Sequential(Headed(), Behind()), heads="0.fc", example=vectors()())
    assert "torch.nn.Identity" not in str(raised.value.fix)


class Sealed(Headed):
    """Refuses another number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "num_classes" and value != 5:
            raise RuntimeError("this one is fixed")
        super().__setattr__(name, value)


@pytest.mark.parametrize("verb", [surgery.replace_head, surgery.remove_head])
def test_a_write_that_a_model_refuses_is_called_that(verb: Callable[..., Any]) -> None:
    model = Sealed()
    before = state_of(model)
    sizes = {"num_classes": 7} if verb is surgery.replace_head else {}
    with pytest.raises(PlanError, match="cannot be set: RuntimeError: this one is fixed") as raised:
        verb(model, **sizes, heads="fc", example=vectors()())
    assert raised.value.where == "num_classes"
    assert not differences(before, state_of(model))


class Labelled(Headed):
    """Makes its own loss from labels, by a number that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.num_labels = 5

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        logits = super().forward(x)
        if labels is None:
            return (logits,)
        return F.cross_entropy(logits.view(-1, self.num_labels), labels), logits


def test_features_have_no_loss_and_the_remedy_says_so() -> None:
    model = Labelled()
    with pytest.raises(PlanError) as raised:
        surgery.remove_head(model, heads="fc", example=LABELS)
    assert raised.value.fix == "pass the example without labels"
    surgery.remove_head(model, heads="fc", example={"x": LABELS["x"]})
    assert model(vectors()())[0].shape == (2, 8)
