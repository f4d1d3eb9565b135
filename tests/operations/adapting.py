"""What the tests of adapted inputs share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import SurgeryError
from surgery.families.registry import Registry
from tests.operations.state import differences, state_of

NO_PLUGINS = Registry.of()


def conv(channels: int = 3, **options: Any) -> nn.Module:
    """A first layer with a batch norm behind it."""
    return nn.Sequential(nn.Conv2d(channels, 8, 3, **options), nn.BatchNorm2d(8), nn.ReLU()).eval()


def image(channels: int = 3) -> Tensor:
    """Two small images, without a trace in the random state."""
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(2))


def refused(
    model: nn.Module, kind: type[SurgeryError], match: str | None, **arguments: Any
) -> SurgeryError:
    """Refused, with a next step, and nothing moved."""
    arguments = {"registry": NO_PLUGINS, **arguments}
    before = state_of(model)
    with pytest.raises(kind, match=match) as caught:
        surgery.adapt_input(model, **arguments)
    assert caught.value.fix
    assert not differences(before, state_of(model))
    return caught.value
