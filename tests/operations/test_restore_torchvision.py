"""Models of torchvision, operated on here and made again in another process, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_plugins import detection, googlenet, mobilenet, resnet, vision_transformer
from torch import nn
from torchvision import models

import surgery
from surgery.deferred import Deferred
from surgery.families.registry import Registry
from tests.operations.restored import assert_answers, assert_same, modes

REGISTRY = Registry.of(
    *(
        family
        for plugin in (detection, googlenet, mobilenet, resnet, vision_transformer)
        for family in plugin.surgery_families()
    )
)


def _resnet(model: nn.Module) -> None:
    surgery.replace_head(model, classes=["ant", "bee"], registry=REGISTRY)
    surgery.freeze(model, except_="heads", registry=REGISTRY)
    surgery.adapt_input(model, in_channels=1, registry=REGISTRY)


def _mobilenet(model: nn.Module) -> None:
    surgery.replace_head(model, 7, hidden=[16], dropout=0.3, registry=REGISTRY)
    surgery.replace(model, {"features.0.2": nn.ReLU()}, registry=REGISTRY)
    surgery.freeze(model, "features.0", registry=REGISTRY)
    model.eval()


def _googlenet(model: nn.Module) -> None:
    surgery.replace_head(model, 3, registry=REGISTRY)
    surgery.freeze(model, ["conv*", "inception*"])


def _keypoints(model: nn.Module) -> None:
    surgery.replace_head(model, 3, registry=REGISTRY)
    surgery.replace_keypoints(model, 5, registry=REGISTRY)


def _detector(model: nn.Module) -> None:
    surgery.replace_head(model, 4, registry=REGISTRY)


def _transformer(model: nn.Module) -> None:
    surgery.adapt_input(model, image_size=64, registry=REGISTRY)
    surgery.remove_head(model, registry=REGISTRY)
    model.half()


Case = tuple[Callable[[nn.Module], None], dict[str, Any], Any]
IMAGE = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
SCRATCH: dict[str, Any] = {"weights": None, "weights_backbone": None}
CASES: dict[str, Case] = {
    "resnet18": (_resnet, {}, IMAGE[:, :1]),
    "mobilenet_v2": (_mobilenet, {}, IMAGE),
    "googlenet": (_googlenet, {"init_weights": False}, IMAGE),
    "detection.ssdlite320_mobilenet_v3_large": (_detector, SCRATCH, [IMAGE[0]]),
    "vit_b_32": (_transformer, {}, None),
}
SLOW: dict[str, Case] = {
    "detection.keypointrcnn_resnet50_fpn": (_keypoints, SCRATCH, None),
    "detection.fasterrcnn_mobilenet_v3_large_320_fpn": (_detector, SCRATCH, [IMAGE[0]]),
    "detection.retinanet_resnet50_fpn": (_detector, SCRATCH, None),
}

_AGAIN = """
import sys, torch, surgery
target, path, options = sys.argv[1:]
outcome = surgery.restore(target, path, **eval(options))
assert all(check.passed for check in outcome.checks)
surgery.save(outcome.model, path + ".again")
"""


# Each takes a process of its own.
QUICK = ("resnet18", "detection.ssdlite320_mobilenet_v3_large")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*CASES, *SLOW)
    ],
)
def test_a_model_is_made_again_in_another_process(tmp_path: Path, name: str) -> None:
    operate, options, example = {**CASES, **SLOW}[name]
    package, _, function = f"torchvision.models.{name}".rpartition(".")

    def make() -> nn.Module:
        return getattr(sys.modules[package], function)(**options)

    model = make()
    operate(model)
    path = surgery.save(model, tmp_path / "model.safetensors").path
    subprocess.run(
        [sys.executable, "-c", _AGAIN, f"{package}:{function}", str(path), repr(options)],
        check=True,
    )
    assert Path(f"{path}.again").read_bytes() == path.read_bytes()
    again = surgery.restore(make, path).model
    assert modes(again) == modes(model)
    assert_same(model, again)
    if example is not None:
        assert_answers(model, again, example)


def test_a_catalog_knows_the_target(tmp_path: Path) -> None:
    model = models.resnet18()
    surgery.replace_head(model, classes=["ant", "bee"], registry=REGISTRY)
    path = surgery.save(model, tmp_path / "a").path
    again = surgery.restore("torchvision:resnet18", path, registry=REGISTRY).model
    assert_same(model, again)


def test_nothing_is_initialised_that_the_file_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = surgery.save(models.resnet18(), tmp_path / "a").path

    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight was initialised")

    monkeypatch.setattr(Deferred, "fill", drawn)
    again: Any = surgery.restore(models.resnet18, path).model
    assert again.fc.weight.shape == (1000, 512)
