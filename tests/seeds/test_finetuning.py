"""Textbook case 2: the six networks of PyTorch's fine-tuning tutorial."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

import surgery
from benchmarks.seeds import finetuning
from benchmarks.seeds.page import RESULTS

LEARNING = {
    "resnet18": ["fc"],
    "alexnet": ["classifier.6"],
    "vgg11_bn": ["classifier.6"],
    "squeezenet1_0": ["classifier.1"],
    "densenet121": ["classifier"],
    "inception_v3": ["AuxLogits.fc", "fc"],
}


@pytest.mark.parametrize("name", finetuning.NAMES)
def test_a_network_gets_two_classes_and_learns_what_it_should(name: str):
    with torch.device("meta"):
        model = finetuning.network(name)
    assert finetuning.input_size(model) == (299 if name == "inception_v3" else 224)
    finetuning.prepare(model, 2, feature_extraction=False)
    assert {(h.address, h.num_classes) for h in surgery.find_heads(model)} == {
        (address, 2) for address in LEARNING[name]
    }
    assert finetuning.to_learn(model) == [parameter for parameter, _ in model.named_parameters()]

    surgery.freeze(model, except_="heads")
    heads = [f"{head}.{member}" for head in LEARNING[name] for member in ("weight", "bias")]
    assert finetuning.to_learn(model) == heads


def test_the_table_of_the_six():
    assert finetuning.table() == (RESULTS / "finetuning.md").read_text("utf-8")


def test_inception_learns_from_both_of_its_outputs():
    torch.manual_seed(0)
    model = finetuning.network("inception_v3")
    finetuning.prepare(model, 2, feature_extraction=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01
    )
    outputs, labels = model.train()(torch.rand(2, 3, 299, 299)), torch.tensor([0, 1])
    logits, auxiliary = (nn.functional.cross_entropy(part, labels) for part in outputs)
    loss = finetuning.loss(outputs, labels)
    assert torch.equal(loss, logits + 0.4 * auxiliary)
    loss.backward()
    optimizer.step()
    moved = [name for name, value in model.state_dict().items() if value.ne(before[name]).any()]
    assert moved == finetuning.to_learn(model)
    assert isinstance(model.eval()(torch.rand(1, 3, 299, 299)), torch.Tensor)


def test_the_loss_of_one_output_is_its_cross_entropy():
    logits = torch.zeros(4, 2)
    assert finetuning.loss(logits, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", finetuning.NAMES)
def test_torchvisions_own_weights_arrive_once_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All but the wire: torchvision asks torch.hub, which is given a file in place of the net."""
    asked: list[str] = []

    def download(url: str, dst: str, *_: object, **__: object) -> None:
        asked.append(url)
        with torch.device("meta"):
            blank = finetuning.network(name)
        # One number stands for a whole tensor, or the six files would take a gigabyte.
        torch.save({key: stamp(key, value) for key, value in blank.state_dict().items()}, dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    model = finetuning.network(name, weights="DEFAULT")
    assert asked == [models.get_model_weights(name).DEFAULT.url]
    heads = tuple(f"{head}." for head in LEARNING[name])
    finetuning.prepare(model, 2, feature_extraction=True)
    for key, value in model.state_dict().items():
        if not key.startswith(heads):
            assert value.eq(stamp(key, value)).all(), key
    assert finetuning.input_size(model) == (299 if name == "inception_v3" else 224)


def stamp(key: str, value: torch.Tensor) -> torch.Tensor:
    """One number in every place, made from the name."""
    number = zlib.crc32(key.encode()) % 2**20
    return torch.tensor(number, dtype=value.dtype).expand(value.shape)
