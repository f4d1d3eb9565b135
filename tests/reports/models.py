"""One model that has something to say in every part of an audit."""

from __future__ import annotations

import warnings

import torch
from torch import nn

EVIL = "fc\x1b[2J[red]\u202eevil"


def rich_model() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.nn.quantized.Linear(4, 2)
    block = torch.zeros(2, 4, 4)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    first.weight, second.weight = nn.Parameter(block[0]), nn.Parameter(block[1])
    backbone = nn.Sequential(nn.Sequential(first, nn.BatchNorm1d(4)), nn.ReLU(), second)
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(1000, 4, dtype=torch.bfloat16),
            "backbone": backbone.requires_grad_(False),
            "head": nn.Linear(4, 1000, bias=False, dtype=torch.bfloat16),
            "packed": packed,
            "far": nn.Linear(4, 512, device="meta"),
        }
    )
    model["head"].weight = model["embedding"].weight
    model._modules[EVIL] = nn.Linear(2, 2)
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool), persistent=False)
    model.cache = torch.zeros(2)
    return model


class Classifier(nn.Module):
    """Two heads, one of them for training alone; the other has a name that is up to no good."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.body = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.aux = nn.Linear(6, 5)
        self.add_module(EVIL, nn.Linear(6, 5, bias=False))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        outputs = {"out": self.get_submodule(EVIL)(features)}
        if self.training:
            outputs["aux"] = self.aux(features)
        return outputs


def vectors() -> torch.Tensor:
    return torch.zeros(2, 8)


# Names that a terminal, a browser, a template or plotly would each read as more than a name.
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "<b>bold</b>",
    "<a href='javascript:alert(1)'>x</a>",
    "&lt;i&gt; &amp;amp;",
    "%{value} %{label}",
    "{{7*7}} {% raw %}",
    "$\\alpha$ `${1}`",
    "<br>up<sup>2</sup>",
    EVIL,
    "lone \ud800 surrogate",
    "line\u2028break\nand \x00",
    "שלום",
)


def hostile_model() -> nn.Module:
    """A module of each hostile name, all of one size."""
    return nn.ModuleDict({name: nn.Linear(8, 8) for name in HOSTILE_NAMES})
