"""Another image size: what comes of it is what the constructor builds for that size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from surgery_plugins import efficientnet_pytorch, maxvit, swin, video, vision_transformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

import surgery
from surgery.errors import (
    ArgumentError,
    ClaimContradictedError,
    PlanError,
    PluginError,
)
from surgery.families.family import Family
from surgery.families.registry import Registry
from surgery.families.resizing import (
    Exchanged,
    Fixed,
    Positions,
    Recomputed,
    RelativePositions,
    check_multiple,
)
from tests.operations.adapting import refused
from tests.operations.state import differences, state_of

REGISTRY = Registry.of(
    vision_transformer.FAMILY, swin.FAMILY, maxvit.FAMILY, *video.surgery_families()
)


def vit(size: int = 64) -> nn.Module:
    return models.VisionTransformer(size, 16, 2, 2, 8, 16, num_classes=5)


def swin_v1(window: int = 2) -> nn.Module:
    return SwinTransformer([4, 4], 8, [2, 2], [2, 2], [window, window], num_classes=5)


def swin_v2(window: int = 2) -> nn.Module:
    return SwinTransformer(
        [4, 4],
        8,
        [2, 2],
        [2, 2],
        [window, window],
        num_classes=5,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def max_vit(size: int = 64) -> nn.Module:
    return MaxVit((size, size), 8, size // 32, [8, 8], [1, 1], 4, 0.0, num_classes=5)


def mvit(size: int = 64, relative: bool = True) -> nn.Module:
    config = models.video.mvit.MSBlockConfig
    blocks = [
        config(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        config(2, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return models.video.MViT(
        (size, size),
        4,
        blocks,
        residual_pool=False,
        residual_with_cls_embed=True,
        rel_pos_embed=relative,
        proj_after_attn=True,
        num_classes=5,
    )


BUILT: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "vit": (vit, ()),
    "swin v1": (lambda size: swin_v1(size // 32), ()),
    "swin v2": (lambda size: swin_v2(size // 32), ()),
    "maxvit": (max_vit, ()),
    "mvit with relative positions": (mvit, (4,)),
    "mvit with absolute positions": (lambda size: mvit(size, relative=False), (4,)),
}


def sizes(model: nn.Module) -> dict[str, Any]:
    """Everything in a model that an image size could show in."""
    found: dict[str, Any] = {name: tuple(t.shape) for name, t in model.named_parameters()}
    for name, buffer in model.named_buffers():
        found[name] = (tuple(buffer.shape), buffer.dtype, buffer.flatten().tolist())
    for address, module in model.named_modules():
        for name, value in module.__dict__.items():
            if isinstance(value, int | tuple | list) and not name.startswith("_"):
                found[f"{address}: {name}"] = list(value) if isinstance(value, tuple) else value
    return found


@pytest.mark.parametrize("new", [128, 32, 96])
@pytest.mark.parametrize("name", BUILT)
def test_it_becomes_what_the_constructor_builds(name: str, new: int) -> None:
    build, frames = BUILT[name]
    new = max(new, 64) if "swin" in name else new
    model = build(64 if new != 64 else 128).eval()
    example = torch.zeros(2, 3, *frames, 64, 64)
    before = state_of(model, process=False)
    outcome = surgery.adapt_input(model, image_size=new, example=example, registry=REGISTRY)
    assert sizes(model) == sizes(build(new).eval())
    assert model(torch.rand(1, 3, *frames, new, new)).isfinite().all()
    assert {change.mode for change in outcome.plan.outputs} == {"eval", "train"}
    assert all(change.before == change.after for change in outcome.plan.outputs)
    outcome.undo()
    assert not differences(before, state_of(model, process=False))


@pytest.mark.parametrize("name", BUILT)
def test_the_same_size_is_nothing_to_do(name: str) -> None:
    build, frames = BUILT[name]
    model = build(64)
    example = torch.zeros(2, 3, *frames, 64, 64)
    outcome = surgery.adapt_input(model, image_size=64, example=example, registry=REGISTRY)
    assert not outcome.plan.steps


def test_position_embeddings_are_interpolated_and_the_class_token_stays() -> None:
    model = vit(64)
    old = model.encoder.pos_embedding
    values = old.detach().clone()
    surgery.adapt_input(model, image_size=128, registry=REGISTRY)
    new = model.encoder.pos_embedding.detach()
    assert torch.equal(new[:, :1], values[:, :1])
    grid = values[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid.double(), (8, 8), mode="bicubic")
    torch.testing.assert_close(new[:, 1:].double(), expected.flatten(2).mT, atol=1e-6, rtol=1e-5)
    assert isinstance(model.encoder.pos_embedding, nn.Parameter)


@pytest.mark.parametrize("name", ["swin v1", "maxvit"])
def test_a_table_without_positions_stays_without(name: str) -> None:
    build, _ = BUILT[name]
    model = build(64)
    tables = [a for a, _ in model.named_parameters() if a.endswith("bias_table")]
    for address in tables:
        surgery.tree.get(model, address).data.fill_(0.25)
    example = torch.zeros(2, 3, 64, 64)
    surgery.adapt_input(model, image_size=96, example=example, registry=REGISTRY)
    for address in tables:
        table = surgery.tree.get(model, address)
        torch.testing.assert_close(table.detach(), torch.full_like(table, 0.25))


def test_a_table_keeps_its_middle_and_its_sides() -> None:
    """A slope along one axis stays a slope: entries of one row of distances stay equal."""
    model = swin_v1(2)
    table = model.features[1][0].attn.relative_position_bias_table
    table.data.copy_(torch.arange(9.0).div(3, rounding_mode="floor")[:, None].expand(9, 2))
    surgery.adapt_input(model, image_size=128, example=torch.zeros(2, 3, 64, 64), registry=REGISTRY)
    new = model.features[1][0].attn.relative_position_bias_table.detach().reshape(7, 7, 2)
    torch.testing.assert_close(new, new[:, :1].expand(7, 7, 2))
    torch.testing.assert_close(new[3], torch.ones(7, 2))
    assert bool((new[1:, 0, 0] > new[:-1, 0, 0] - 1e-6).all())


def test_swin_keeps_windows_that_do_not_scale() -> None:
    model = swin_v1(2)
    for size in ((80, 112), (32, 32)):
        outcome = surgery.adapt_input(
            model, image_size=size, example=torch.zeros(2, 3, 64, 64), registry=REGISTRY
        )
        assert not outcome.plan.steps
        assert f"{size[0]} by {size[1]}" in outcome.plan.notes[0]


def test_height_and_width_may_differ() -> None:
    model = swin_v1(2).eval()
    surgery.adapt_input(
        model, image_size=(96, 64), example=torch.zeros(2, 3, 64, 64), registry=REGISTRY
    )
    attention = model.features[1][1].attn
    assert (attention.window_size, attention.shift_size) == ([3, 2], [1, 1])
    assert tuple(attention.relative_position_bias_table.shape) == (5 * 3, 2)
    assert model(torch.rand(1, 3, 96, 64)).shape == (1, 5)


def test_channels_and_size_in_one() -> None:
    model = vit(64)
    before = state_of(model, process=False)
    outcome = surgery.adapt_input(model, in_channels=1, image_size=96, registry=REGISTRY)
    assert model(torch.rand(2, 1, 96, 96)).shape == (2, 5)
    outcome.undo()
    assert not differences(before, state_of(model, process=False))


@pytest.mark.parametrize("new", [97, (65, 128)])
def test_padding_for_one_size_follows(new: Any) -> None:
    """An odd size pads differently, and a wrong padding answers differently."""
    name, registry = "efficientnet-b0", Registry.of(efficientnet_pytorch.FAMILY)
    size = new if isinstance(new, tuple) else (new, new)
    model = EfficientNet.from_name(name, image_size=64, num_classes=5).eval()
    fresh = EfficientNet.from_name(name, image_size=size, num_classes=5).eval()
    fresh.load_state_dict(model.state_dict())
    paddings = str(model)
    outcome = surgery.adapt_input(
        model, image_size=new, example=torch.zeros(2, 3, 64, 64), registry=registry
    )
    image = torch.rand(1, 3, *size)
    assert torch.equal(model.extract_features(image), fresh.extract_features(image))
    assert str(model) == str(fresh)
    outcome.undo()
    assert str(model) == paddings


class Free(nn.Module):
    """Takes images of any size, and gives as many pixels back beside its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        pixels = self.conv(x)
        return {"pixels": pixels, "classes": pixels.mean((2, 3))}


def test_a_model_for_any_size_says_so() -> None:
    model = Free()
    outcome = surgery.adapt_input(
        model, image_size=(24, 8), example=torch.zeros(2, 3, 16, 16), registry=Registry.of()
    )
    assert not outcome.plan.steps
    assert any("nothing in the model has to change" in note for note in outcome.plan.notes)
    after = {change.path: change.after.shape for change in outcome.plan.outputs}
    assert after == {"output['pixels']": (2, 4, 24, 8), "output['classes']": (2, 4)}


def flat() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 5))


@pytest.mark.parametrize("build", [flat, lambda: vit(16)])
def test_a_model_for_one_size_is_refused_without_a_family(build: Any) -> None:
    example = torch.zeros(2, 3, 16, 16)
    error = refused(build(), PlanError, "one size", image_size=32, example=example)
    assert error.where == "image_size"


def test_what_a_family_cannot_cut_is_refused() -> None:
    for size in (65, (64, 32), 8):
        refused(vit(32), PlanError, "evenly", image_size=size, registry=REGISTRY)
    with pytest.raises(PlanError, match="evenly"):
        check_multiple((64, 65), 16)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "64", (64,), (64, 0), (1, 2, 3), [64, "a"]])
def test_a_wrong_size_is_refused(size: Any) -> None:
    error = refused(Free(), ArgumentError, "no size", image_size=size)
    assert error.where == "image_size"


def test_an_input_without_pixels_is_refused() -> None:
    example = torch.zeros(2, 3, 9)
    refused(nn.Conv1d(3, 4, 3), PlanError, "rows and columns", image_size=8, example=example)


class Table(nn.Module):
    """One of everything that a family may name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 4, 4))
        self.register_buffer("cells", torch.arange(4))
        self.side = 2
        self.padding = nn.Identity()

    def compute(self) -> None:
        self.register_buffer("cells", torch.arange(self.side**2))

    def forward(self, x: Tensor) -> Tensor:
        cells = self.conv(self.padding(x)).flatten(2).mT
        return (cells + self.positions)[:, self.cells].mean(1)


def known(*followers: Any) -> Registry:
    name = f"{Table.__module__}.Table"
    return Registry.of(Family("table", (name,), resize=lambda model, size: followers))


EVERYTHING = (
    Fixed("", "side", 4),
    Positions("positions", (2, 2), (4, 4)),
    Recomputed("", "compute", ("cells",)),
    Exchanged("padding", nn.ZeroPad2d((1, 0, 0, 0))),
)


def test_a_family_names_what_follows() -> None:
    model = Table()
    example = torch.zeros(2, 3, 8, 8)
    before = state_of(model, process=False)
    outcome = surgery.adapt_input(
        model, image_size=16, example=example, registry=known(*EVERYTHING)
    )
    assert model.cells.tolist() == list(range(16))
    assert (model.side, tuple(model.positions.shape)) == (4, (1, 16, 4))
    assert isinstance(model.padding, nn.ZeroPad2d)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 4)
    outcome.undo()
    assert not differences(before, state_of(model, process=False))


@pytest.mark.parametrize(
    ("follower", "kind"),
    [
        (Fixed("", "height", 4), ClaimContradictedError),
        (Fixed("nowhere", "side", 4), ClaimContradictedError),
        (Positions("positions", (3, 3), (4, 4)), ClaimContradictedError),
        (Positions("side", (2, 2), (4, 4)), ClaimContradictedError),
        (Positions("nowhere", (2, 2), (4, 4)), ClaimContradictedError),
        (Positions("positions", (2, 2), (2, 4, 4)), PlanError),
        (RelativePositions("positions", (2, 2), (4, 4)), ClaimContradictedError),
        (RelativePositions("", (2,), (4,), "cells"), ClaimContradictedError),
        (Recomputed("", "forget", ("cells",)), ClaimContradictedError),
        (Recomputed("", "compute", ("positions",)), ClaimContradictedError),
        (Exchanged("nowhere", nn.Identity()), ClaimContradictedError),
        ("positions", PluginError),
    ],
)
def test_what_the_model_does_not_bear_out_is_refused(follower: Any, kind: Any) -> None:
    example = torch.zeros(2, 3, 8, 8)
    refused(Table(), kind, None, image_size=16, example=example, registry=known(follower))


def test_a_family_that_forgets_something_is_noticed() -> None:
    example = torch.zeros(2, 3, 8, 8)
    registry = known(Fixed("", "side", 4))
    refused(Table(), PlanError, "no longer runs", image_size=16, example=example, registry=registry)


def test_a_broken_family_is_named() -> None:
    def broken(model: Any, size: Any) -> Any:
        return 1 / 0

    family = Family("broken", (f"{Table.__module__}.Table",), resize=broken)
    example = torch.zeros(2, 3, 8, 8)
    error = refused(
        Table(), PluginError, "broken", image_size=16, example=example, registry=Registry.of(family)
    )
    assert "ZeroDivisionError" in str(error)
    with pytest.raises(PluginError, match="resize"):
        Family("broken", ("a.B",), resize="image_size")  # type: ignore[arg-type]
