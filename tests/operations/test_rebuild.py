"""Heads of a class that a plugin rebuilds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import surgery
from surgery.errors import ArgumentError, PluginError
from surgery.families.kinds import HeadKind
from surgery.families.registry import Registry


class Cosine(nn.Module):
    """Similarity to one prototype a class, which keeps a table of pairs of classes too."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(classes, features))
        self.register_buffer("pairs", torch.arange(classes * classes).view(classes, classes))

    def forward(self, x: Tensor) -> Tensor:
        if self.pairs.shape[0] != self.prototypes.shape[0]:
            raise ValueError("the table is of another size")
        return F.linear(F.normalize(x), F.normalize(self.prototypes))


def rebuild(layer: nn.Module, classes: int) -> nn.Module:
    old = layer.prototypes
    return Cosine(old.shape[1], classes).to(device=old.device, dtype=old.dtype)


def registry(how: Any = rebuild) -> Registry:
    name = f"{Cosine.__module__}.{Cosine.__qualname__}"
    return Registry.of(head_kinds=[HeadKind("cosine", (name,), how)])


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Cosine(6, 5)).double()


X = torch.zeros(2, 4, dtype=torch.float64)


def replaced(net: nn.Module, **options: Any) -> surgery.Outcome:
    return surgery.replace_head(net, 3, heads="2", example=X, **options)


def test_a_plugin_rebuilds_what_the_graph_alone_cannot() -> None:
    net = model()
    with pytest.raises(surgery.errors.SurgeryError):
        replaced(net, registry=Registry.of())
    old = net[2]
    outcome = replaced(net, registry=registry())
    assert isinstance(net[2], Cosine)
    assert net[2].prototypes.shape == (3, 6)
    assert net[2].prototypes.dtype == torch.float64
    assert net(X).shape == (2, 3)
    assert all(check.passed for check in outcome.checks)
    outcome.undo()
    assert net[2] is old


def test_mode_flags_and_hooks_pass_to_the_rebuilt_layer() -> None:
    net = model().eval().requires_grad_(False)
    seen: list[str] = []
    handle = net[2].register_forward_hook(lambda *_: seen.append("ran"))
    replaced(net, registry=registry(), trainable=None)
    assert not net[2].training
    assert not net[2].prototypes.requires_grad
    seen.clear()
    net(X)
    assert seen == ["ran"]
    handle.remove()
    net(X)
    assert seen == ["ran"]


def broken(layer: nn.Module, classes: int) -> nn.Module:
    raise RuntimeError("no prototypes today")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (broken, "no prototypes today"),
        (lambda layer, classes: layer, "made no new layer"),
        (lambda layer, classes: classes, "made no new layer"),
    ],
)
def test_a_broken_head_kind_is_named_and_nothing_is_touched(how: Any, says: str) -> None:
    net = model()
    old = net[2]
    with pytest.raises(PluginError, match=says) as raised:
        replaced(net, registry=registry(how))
    assert "cosine" in str(raised.value)
    assert net[2] is old


def test_rows_cannot_be_kept_through_a_plugin() -> None:
    with pytest.raises(ArgumentError, match="a plugin rebuilds this head"):
        replaced(model(), registry=registry(), keep={0: 0})
