"""Heads with more rows than the output has classes: padding that forward leaves away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import PlanError, SurgeryError
from surgery.families import Family, HeadClaim
from surgery.families.registry import Registry
from surgery.heads import find_heads


class Cut(nn.Module):
    """Sixteen rows, of which a slice comes out."""

    def __init__(self, kept: slice) -> None:
        super().__init__()
        self.kept, self.body, self.head = kept, nn.Linear(8, 6), nn.Linear(6, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())[:, self.kept]


FAMILY = Family(
    name="cut", classes=(f"{__name__}.Cut",), packages=("torch",), heads=(HeadClaim("head"),)
)
X = torch.zeros(2, 8)


def test_what_a_family_claims_may_be_cut_at_its_end() -> None:
    model = Cut(slice(10))
    (head,) = find_heads(model, X, registry=Registry.of(FAMILY))
    assert (head.address, head.num_classes, head.outputs[0].size) == ("head", 16, 10)
    assert head.corroborated


@pytest.mark.parametrize("classes", [7, 12])
def test_what_is_cut_to_a_fixed_number_is_not_replaced(classes: int) -> None:
    model = Cut(slice(10))
    head = model.head
    with pytest.raises(PlanError, match="nothing could be proven"):
        surgery.replace_head(model, classes, example=X, registry=Registry.of(FAMILY))
    assert model.head is head


def test_without_a_claim_a_part_of_the_features_is_no_head() -> None:
    assert not find_heads(Cut(slice(10)), X, registry=Registry.of())


@pytest.mark.parametrize("kept", [slice(6, 16), slice(0, 16, 2)], ids=["its end", "every second"])
def test_another_part_contradicts_the_claim(kept: slice) -> None:
    with pytest.raises(SurgeryError, match="the graph shows something else"):
        find_heads(Cut(kept), X, registry=Registry.of(FAMILY))
