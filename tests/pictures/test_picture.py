"""Kernels and maps as images: read back from the file, pixel by pixel."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from surgery_plugins import resnet
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

import surgery
from surgery.errors import AddressError, ArgumentError, ExampleError, SurgeryError, WeightsError
from surgery.families.registry import Registry
from surgery.pictures.tiles import scaled
from tests.operations.state import differences, state_of

NONE = Registry.of()
RESNETS = Registry.of(resnet.FAMILY)
# Above the tiles stands a line of text, between them two pixels.
STRIP, GAP = 22, 2


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return pil_to_tensor(image.convert("RGB"))


def tile(image: Tensor, place: int, columns: int, height: int, width: int) -> Tensor:
    top = STRIP + GAP + place // columns * (height + GAP)
    left = GAP + place % columns * (width + GAP)
    return image[:, top : top + height, left : left + width]


def test_a_kernel_over_three_channels_is_a_coloured_tile(tmp_path: Path):
    model = nn.Sequential(nn.Conv2d(3, 4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[1, 0, 0, 0] = 1.0  # red, above, left
        model[0].weight[2, 2, 1, 1] = 0.5  # a dim blue, below, right
    surgery.picture(model, "0", tmp_path / "filters.png")
    image = pixels(tmp_path / "filters.png")
    # 2 by 2 tiles; each pixel of a kernel becomes 24 by 24.
    assert image.shape[1] == STRIP + GAP + 2 * (48 + GAP)
    expected = torch.zeros(4, 3, 48, 48, dtype=torch.uint8)
    expected[1, 0, :24, :24] = 255
    expected[2, 2, 24:, 24:] = 128
    for place in range(4):
        assert torch.equal(tile(image, place, 2, 48, 48), expected[place])
    gap = image[:, STRIP : STRIP + GAP, : GAP + 2 * (48 + GAP)]
    assert torch.equal(gap, torch.full_like(gap, 255))


def test_a_kernel_over_other_channels_is_a_row_of_grey_tiles(tmp_path: Path):
    model = nn.Conv2d(2, 3, 4)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(3, 2, 1, 1).expand(3, 2, 4, 4) / 5)
    surgery.picture(model, "", tmp_path / "filters.png")
    image = pixels(tmp_path / "filters.png")
    greys = [int(tile(image, place, 2, 48, 48).unique()) for place in range(6)]
    assert greys == [0, 51, 102, 153, 204, 255]
    one = surgery.picture(model, "", channel=1, normalise="whole")
    assert one.image.shape[1] == STRIP + GAP + 2 * (48 + GAP)


def test_a_linear_layer_is_its_matrix(tmp_path: Path):
    model = nn.Linear(60, 50)
    surgery.picture(model, "", tmp_path / "weight.png")
    shown = tile(pixels(tmp_path / "weight.png"), 0, 1, 50, 60)[0]
    values = scaled(model.weight[None, None], "whole")[0, 0]
    assert torch.equal(shown, (values * 255 + 0.5).clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv1d(3, 8, 5), "8 kernels of 5 over 3 channels"),
        (nn.Conv3d(1, 8, (2, 3, 3)), "8 kernels of 2 x 3 x 3 over 1 channels"),
        (nn.ConvTranspose2d(6, 3, 3), "3 kernels of 3 x 3 over 6 channels"),
        (nn.Embedding(5, 4), "a matrix of 5 x 4"),
    ],
    ids=["line", "volume", "transposed", "embedding"],
)
def test_every_sort_of_weight_is_drawn(layer: nn.Module, said: str):
    assert surgery.picture(layer, "").title == said


@given(st.floats(-1e30, 1e30), st.floats(0, 1e30), st.sampled_from(["whole", "each"]))
def test_scaling_keeps_the_order_and_fills_the_range(low: float, span: float, how: str):
    tiles = torch.tensor([low, low + span / 2, low + span], dtype=torch.float64).view(1, 1, 1, 3)
    shown = scaled(tiles, how).flatten().tolist()
    assert all(0 <= value <= 1 for value in shown)
    assert sorted(shown) == shown
    if float(tiles.max()) > float(tiles.min()):
        assert (shown[0], shown[-1]) == (0.0, 1.0)


def test_what_is_no_number_does_not_hide_the_rest():
    tiles = torch.tensor([float("nan"), float("inf"), 0.0, 4.0, -4.0]).view(1, 1, 1, 5)
    assert scaled(tiles, "whole").flatten().tolist() == [0.0, 1.0, 0.5, 1.0, 0.0]


def test_a_pattern_draws_every_convolution_that_fits():
    model = torchvision.models.resnet18()
    picture = surgery.picture(model, "layer1.*.conv?", limit=4)
    assert picture.title == "4 layers that fit layer1.*.conv?"
    assert len([note for note in picture.notes if "kernels are drawn" in note]) == 4


class Net(nn.Module):
    """Convolution, an attention-like tuple, tokens, a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.rest = nn.LSTM(4, 6, batch_first=True)
        self.idle = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x)))
        return self.rest(x.flatten(2).transpose(1, 2))[0]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = torch.arange(16 * 24 * 3, dtype=torch.int64).remainder(251).to(torch.uint8)
    path = tmp_path / "photo.png"
    Image.frombytes("RGB", (24, 16), values.numpy().tobytes()).save(path)
    return path


EXAMPLE = torch.zeros(2, 3, 16, 16)


def test_maps_are_what_the_layer_puts_out(photo: Path):
    model = Net().eval()
    picture = surgery.picture(
        model, "conv", image=photo, example=EXAMPLE, mean=(0.5,), std=(0.25,), registry=NONE
    )
    # A photograph that is too wide loses its sides.
    image = pixels(photo)[:, :, 4:20].float() / 255
    expected = model.conv(((image - 0.5) / 0.25)[None])[0]
    assert torch.allclose(picture.maps, expected, atol=1e-6)
    assert picture.title == "conv: 4 maps of 16 x 16"


def test_tokens_are_drawn_as_the_image_they_cover_and_a_leaf_is_chosen(photo: Path):
    settings = {"image": photo, "example": EXAMPLE, "registry": NONE}
    picture = surgery.picture(Net(), "rest", **settings)
    assert picture.maps.shape == (6, 16, 16)
    assert any("output[0] is drawn" in note for note in picture.notes)
    state = surgery.picture(Net(), "rest", output="output[1][0]", **settings)
    assert state.maps.shape[-1] == 6
    with pytest.raises(ArgumentError, match="no such tensor"):
        surgery.picture(Net(), "rest", output="output[7]", **settings)


@pytest.mark.parametrize("layer", ["conv", "norm", "idle"])
def test_the_model_is_untouched_whether_it_works_or_not(layer: str, photo: Path):
    model = Net().train()
    model.conv.register_forward_hook(lambda *_: None)
    before = state_of(model)
    fails = pytest.raises(ArgumentError, match="does not run")
    with fails if layer == "idle" else nullcontext():
        surgery.picture(model, layer, image=photo, example=EXAMPLE, registry=NONE)
    assert differences(before, state_of(model)) == []


def test_before_and_after_stand_on_one_scale_and_the_difference_is_said(photo: Path):
    before, after = Net(), Net()
    after.load_state_dict(before.state_dict())
    settings = {"image": photo, "example": EXAMPLE, "registry": NONE}
    same = surgery.picture(before, "conv", after=copy.deepcopy(before), **settings)
    assert same.difference == 0.0
    with torch.no_grad():
        after.conv.weight[2] += 1.0
    picture = surgery.picture(before, "conv", after=after, **settings)
    one = surgery.picture(before, "conv", **settings).maps
    assert picture.difference == pytest.approx(float((picture.maps - one).abs().max()))
    assert picture.difference > 0
    with pytest.raises(ArgumentError, match="one model"):
        surgery.picture(before, "conv", after=before, **settings)


def test_maps_of_other_shapes_are_drawn_and_not_compared(photo: Path):
    one, other = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 5, 1))
    picture = surgery.picture(one, "0", image=photo, after=other, example=EXAMPLE, registry=NONE)
    assert picture.difference is None
    assert any("shapes differ" in note for note in picture.notes)


def test_a_family_says_how_large_the_image_is(photo: Path):
    model = torchvision.models.resnet18()
    picture = surgery.picture(model, "layer4", image=photo, limit=5, registry=RESNETS)
    assert picture.maps.shape == (512, 7, 7)
    assert "5 of 512 maps are drawn" in picture.notes


WRONG = {
    "no such layer": ({"layer": "convv"}, AddressError, "nothing is called"),
    "no kernel": ({"layer": "norm"}, ArgumentError, "no kernel"),
    "no fit": ({"layer": "x*"}, ArgumentError, "fits no convolution"),
    "no channel": ({"layer": "conv", "channel": 9}, ArgumentError, "no such input channel"),
    "no limit": ({"layer": "conv", "limit": 0}, ArgumentError, "number of tiles"),
    "no scale": ({"layer": "conv", "normalise": "some"}, ArgumentError, "scaled"),
    "no image": ({"layer": "conv", "image": 7}, ArgumentError, "no image"),
    "no file": ({"layer": "conv", "image": "gone.png"}, ArgumentError, "no image that can be read"),
    "no pixels": ({"layer": "conv", "image": __file__}, ArgumentError, "no image that can be read"),
    "tensor": ({"layer": "conv", "image": torch.zeros(1, 2)}, ArgumentError, "no image"),
    "mean": (
        {"layer": "conv", "image": EXAMPLE[0], "mean": (1, 2)},
        ArgumentError,
        "mean does not",
    ),
    "std": ({"layer": "conv", "image": EXAMPLE[0], "std": (0,)}, ArgumentError, "std does not"),
    "after": ({"layer": "conv", "after": Net()}, ArgumentError, "need an image"),
    "format": ({"layer": "conv", "path": "x.svg"}, ArgumentError, "in this format"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_explained(name: str):
    arguments, kind, said = WRONG[name]
    with pytest.raises(SurgeryError, match=said) as caught:
        surgery.picture(Net(), example=EXAMPLE, registry=NONE, **arguments)
    assert isinstance(caught.value, kind)
    assert caught.value.fix


def test_a_model_without_values_or_without_images_is_explained(photo: Path):
    with torch.device("meta"):
        model = Net()
    with pytest.raises(ArgumentError, match="no values"):
        surgery.picture(model, "conv")
    with pytest.raises(ArgumentError, match="no values"):
        surgery.picture(model, "conv", image=photo, example=EXAMPLE, registry=NONE)
    line = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ExampleError, match="takes no image"):
        surgery.picture(line, "0", image=photo, example=torch.zeros(1, 4), registry=NONE)


def test_a_picture_is_saved_whole_and_replaces_nothing_unasked(tmp_path: Path):
    path = tmp_path / "filters.jpg"
    path.write_bytes(b"old")
    with pytest.raises(WeightsError, match="there is a file already"):
        surgery.picture(Net(), "conv", path)
    assert path.read_bytes() == b"old"
    picture = surgery.picture(Net(), "conv", path, overwrite=True)
    assert pixels(path).shape == picture.image.shape
    assert [each.name for each in tmp_path.iterdir()] == ["filters.jpg"]
    assert picture._repr_png_().startswith(b"\x89PNG")
