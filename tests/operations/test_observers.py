"""Observers of every row of a head's weight: refused before anything runs with other rows.

No test runs a prepared model whose head was resized: the operators write past their buffers.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

NO_PLUGINS = Registry.of()
IMAGES = torch.randn(2, 3, 6, 6)


class Net(nn.Module):
    """One convolution, and a head of five classes from five features."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.conv = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def prepared(qconfig: object) -> Net:
    """A model in training with simulated quantisation, after its first step."""
    model = Net().train()
    model.qconfig = qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.prepare_qat(model, inplace=True)
        model(IMAGES)
    return model


def config(backend: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.get_default_qat_qconfig(backend)


def unfused() -> object:
    from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver, QConfig

    weight = FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    return QConfig(activation=FakeQuantize, weight=weight)


@pytest.mark.parametrize("fused", [True, False])
def test_per_channel_observers_are_refused_and_named(fused: bool) -> None:
    model = prepared(config("fbgemm") if fused else unfused())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError, match="prepare_qat") as caught:
        surgery.replace_head(model, 7, example=IMAGES, registry=NO_PLUGINS)
    for name in ("scale", "zero_point"):
        assert f"fc.weight_fake_quant.{name}" in caught.value.where
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_one_observer_for_the_whole_weight_is_no_obstacle() -> None:
    model = prepared(config("qnnpack"))
    surgery.replace_head(model, 7, example=IMAGES, registry=NO_PLUGINS)
    assert model(IMAGES).shape == (2, 7)


def test_replacing_first_and_preparing_then_works() -> None:
    model = Net().train()
    surgery.replace_head(model, 7, example=IMAGES, registry=NO_PLUGINS)
    model.qconfig = config("fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.prepare_qat(model, inplace=True)
        assert model(IMAGES).shape == (2, 7)


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_norms_as_long_as_the_classes_follow_as_before(wrap) -> None:  # type: ignore[no-untyped-def]
    model = Net()
    wrap(model.fc)
    surgery.replace_head(model, 7, example=IMAGES, registry=NO_PLUGINS)
    assert model(IMAGES).shape == (2, 7)
