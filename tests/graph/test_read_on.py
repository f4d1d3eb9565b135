"""Keys and values that are given out are no scores; scores that are read on stay scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import surgery
from surgery.families.registry import Registry

LABELS = 4


class Attention(nn.Module):
    """Two layers of attention, of many questions and one key, and what they keep."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.num_labels = fused, LABELS
        self.embed, self.score = nn.Linear(3, 16), nn.Linear(16, LABELS)
        made = {
            name: nn.ModuleList(nn.Linear(16, size) for _ in range(2))
            for name, size in (("query", 16), ("key", LABELS), ("value", LABELS), ("out", 16))
        }
        self.layers = nn.ModuleDict(made)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.embed(x)
        samples, length, _ = x.shape
        kept = []
        layers = (list(self.layers[name]) for name in ("query", "key", "value", "out"))
        for query, key, value, out in zip(*layers, strict=True):
            keys, values = key(x), value(x)
            asked = query(x).view(samples, length, 4, LABELS).transpose(1, 2)
            if self.fused:
                seen = F.scaled_dot_product_attention(
                    asked, *(each[:, None].expand_as(asked) for each in (keys, values))
                )
            else:
                seen = (asked @ keys[:, None].mT).softmax(-1) @ values[:, None]
            x = x + out(seen.transpose(1, 2).reshape(samples, length, 16))
            kept.append((keys, values))
        return {"scores": self.score(x.mean(1)), "kept": kept}


@pytest.mark.parametrize("fused", [False, True], ids=["by hand", "fused"])
def test_what_attention_keeps_is_no_head(fused: bool):
    found = surgery.find_heads(
        Attention(fused).eval(), torch.zeros(2, 5, 3), registry=Registry.of()
    )
    assert [head.address for head in found] == ["score"]


class Refined(nn.Module):
    """Coarse scores, and finer ones that are made with their help."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_labels = how, LABELS
        self.body, self.coarse = nn.Conv2d(3, 8, 3), nn.Conv2d(8, LABELS, 1)
        self.fine = nn.Conv2d(8 + LABELS if how == "joined" else 8, LABELS, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).relu()
        coarse = self.coarse(x)
        if self.how == "joined":
            return {"out": self.fine(torch.cat([x, coarse], 1)), "coarse": coarse}
        # What a class looks like, by where it is: object context.
        weight = coarse.flatten(2).softmax(-1)
        context = (weight @ x.flatten(2).mT).mean(1)
        return {"out": self.fine(x + context[..., None, None]), "coarse": coarse}


@pytest.mark.parametrize("how", ["joined", "weighing"])
def test_scores_that_others_are_made_of_are_heads(how: str):
    found = surgery.find_heads(Refined(how).eval(), torch.zeros(2, 3, 9, 9), registry=Registry.of())
    assert {head.address for head in found} == {"fine", "coarse"}
    assert all(head.corroborated for head in found)
