"""Which heads are auxiliary: those beside a main one, and those that say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from surgery.families.registry import Registry
from surgery.heads import find_heads

NO_PLUGINS = Registry.of()


class Labels(nn.Module):
    """Logits of two heads in train mode; in eval mode the main one's, or labels alone."""

    def __init__(self, *, labels: bool) -> None:
        super().__init__()
        self.body, self.labels = nn.Linear(8, 6), labels
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> Any:
        f = self.body(x).relu()
        if self.training:
            return self.first(f), self.second(f)
        return self.first(f).argmax(1) if self.labels else self.first(f)


class Named(nn.Module):
    """One output beside another, under a name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.first, self.second = name, nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return {"out": self.first(x), self.name: self.second(x)}


def roles(model: nn.Module) -> dict[str, str]:
    heads = find_heads(model, torch.zeros(2, 8), registry=NO_PLUGINS)
    return {head.address: head.role for head in heads}


def test_training_alone_makes_no_head_auxiliary() -> None:
    """Only beside a head that makes an output in eval mode."""
    assert roles(Labels(labels=True)) == {"first": "main", "second": "main"}
    assert roles(Labels(labels=False)) == {"first": "main", "second": "aux"}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((n, "aux") for n in ("aux", "aux1", "aux_logits", "AuxLogits", "auxLogits", "auxiliary")),
        *((n, "aux") for n in ("logits_aux", "logits.aux", "out2_aux_2", "AUX", "logitsAux")),
        *((n, "main") for n in ("auxin_level", "faux", "auxology", "flaux_1")),
    ],
)
def test_a_name_says_auxiliary_as_a_word(name: str, role: str) -> None:
    assert roles(Named(name)) == {"first": "main", "second": role}
