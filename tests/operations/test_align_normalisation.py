"""Batch normalisation, written out in every order of its steps, is one thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import PlanError, SurgeryError
from surgery.families.registry import Registry
from tests.operations.aligned import contents, images, shaken

NOTHING = Registry.of()
EPS = 1e-5


class Written(nn.Module):
    """A convolution, and its results normalised by hand."""

    def __init__(self, way: Callable[..., Tensor]) -> None:
        super().__init__()
        self.way = way
        self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.scale, self.shift = (nn.Parameter(torch.rand(4)) for _ in range(2))
        self.register_buffer("middle", torch.rand(4))
        self.register_buffer("variance", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        held = self.scale, self.shift, self.middle, self.variance
        return self.out(self.way(self.conv(x), *(each[:, None, None] for each in held)))


def folded(x: Tensor, w: Tensor, b: Tensor, m: Tensor, v: Tensor) -> Tensor:
    scale = w / (v + EPS).sqrt()
    return x * scale + (b - m * scale)


WAYS: dict[str, Callable[..., Tensor]] = {
    "functional": lambda x, w, b, m, v: functional.batch_norm(
        x, *(each.flatten() for each in (m, v, w, b))
    ),
    "divided": lambda x, w, b, m, v: (x - m) / torch.sqrt(v + EPS) * w + b,
    "times a root": lambda x, w, b, m, v: b + w * ((x - m) * torch.rsqrt(v + EPS)),
    "scaled at once": lambda x, w, b, m, v: (x - m) * (w / torch.sqrt(v + EPS)) + b,
    "folded": folded,
    "folded, other way": lambda x, w, b, m, v: (
        x * (w * (v + EPS).rsqrt()) + (b - m * (w * (v + EPS).rsqrt()))
    ),
}


def module() -> nn.Module:
    return shaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_statistics_and_scale_go_with_it_whatever_it_is_written_in(way: str, back: bool):
    written, layer, x = shaken(Written(WAYS[way])), module(), images(4)
    donor, recipient = (layer, written) if back else (written, layer)
    found = surgery.align(donor, recipient, example=x, registry=NOTHING)
    assert found.complete
    assert not found.donor_only
    assert not found.recipient_only
    surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    norm = layer[1]
    pairs = (norm.running_mean, written.middle), (norm.running_var, written.variance)
    for one, other in (*pairs, (norm.weight, written.scale), (norm.bias, written.shift)):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.allclose(donor(x), recipient(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_added_to_the_variance_is_named_whatever_it_is_written_in(way: str, back: bool):
    written, layer, x = shaken(Written(WAYS[way])), module(), images(4)
    layer[1].eps = 1e-3
    donor, recipient = (layer, written) if back else (written, layer)
    theirs, ours = (1e-3, EPS) if back else (EPS, 1e-3)
    named = f"batch_norm eps: {theirs} in the donor"
    with pytest.raises(PlanError) as caught:
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert named in str(caught.value)
    assert f"{ours} in the recipient" in str(caught.value)
    if not back:
        settings = {"differences": "set", "example": x, "registry": NOTHING}
        surgery.transplant(donor, recipient, match="graph", **settings)
        assert layer[1].eps == EPS


OTHERS: dict[str, Callable[..., Tensor]] = {
    "read twice": lambda x, w, b, m, v: (y := (x - m) / torch.sqrt(v + EPS)) * w + y + b,
    "shifted first": lambda x, w, b, m, v: ((x - m) / torch.sqrt(v + EPS) + b) * w,
    "the mean added": lambda x, w, b, m, v: (x + m) / torch.sqrt(v + EPS) * w + b,
    "no root": lambda x, w, b, m, v: (x - m) / (v + EPS) * w + b,
    "another eps": lambda x, w, b, m, v: (x - m) / torch.sqrt(v + 0.5) * w + b,
}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("way", OTHERS)
def test_what_only_looks_like_it_is_never_brought_over(way: str, back: bool):
    written, layer, x = shaken(Written(OTHERS[way])), module(), images(4)
    donor, recipient = (layer, written) if back else (written, layer)
    before = contents(recipient)
    with pytest.raises(SurgeryError):
        surgery.transplant(
            donor, recipient, match="graph", example=x, registry=NOTHING, min_coverage=1
        )
    assert contents(recipient) == before


def test_a_buffer_that_is_taken_away_is_no_mean():
    """What every model of images does to its input."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(3, 1, 1))
            self.register_buffer("spread", torch.rand(3, 1, 1) + 1)
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv((x - self.mean) / self.spread)

    donor, recipient = Centred(), Centred()
    with pytest.raises(SurgeryError, match="mean constant table"):
        surgery.transplant(donor, recipient, match="graph", example=images(4), registry=NOTHING)
    recipient.mean.copy_(donor.mean)
    recipient.spread.copy_(donor.spread)
    surgery.transplant(donor, recipient, match="graph", example=images(4), registry=NOTHING)
    assert torch.equal(recipient.conv.weight, donor.conv.weight)


class Rms(nn.Module):
    """Root mean square, written out, in single precision or as it comes."""

    def __init__(self, *, cast: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.cast, self.eps = cast, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = x.float() if self.cast else x
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.last(self.weight * y.to(x.dtype))


@pytest.mark.parametrize(("one", "other"), [(True, False), (False, True)])
def test_a_cast_in_one_of_two_models_is_rounding_and_is_said(one: bool, other: bool):
    given = {"match": "graph", "example": torch.randn(4, 8), "registry": NOTHING}
    outcome = surgery.transplant(Rms(cast=one), Rms(cast=other), **given)
    assert any("a model casts to single precision" in note for note in outcome.plan.notes)
    for eps in (1e-6, 1e-4):
        with pytest.raises(PlanError, match="add other: "):
            surgery.transplant(Rms(cast=one, eps=eps), Rms(cast=other), **given)


def test_a_cast_excuses_nothing_larger():
    class Otherwise(Rms):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 + 1e-4)

    given = {"match": "graph", "example": torch.randn(4, 8), "registry": NOTHING}
    with pytest.raises(PlanError):
        surgery.transplant(Rms(cast=True), Otherwise(cast=False), **given)
    outcome = surgery.transplant(Rms(cast=True), Rms(cast=True), **given)
    assert not any("casts" in note for note in outcome.plan.notes)


class Waves(nn.Module):
    """Positions in waves, kept as periods or as frequencies."""

    def __init__(self, *, inverse: bool, longest: float = 100.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        periods = longest ** (torch.arange(8) / 7)
        self.register_buffer("table", 1 / periods if inverse else periods)
        self.inverse = inverse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        angles = places * self.table if self.inverse else places / self.table
        return self.last(self.first(x) * angles.cos())


@pytest.mark.parametrize("back", [False, True])
def test_a_table_and_its_inverse_are_one_up_to_rounding(back: bool):
    given = {"match": "graph", "example": torch.randn(2, 50, 8), "registry": NOTHING}
    surgery.transplant(Waves(inverse=back), Waves(inverse=not back), **given)
    with pytest.raises(PlanError, match="table"):
        surgery.transplant(Waves(inverse=back), Waves(inverse=not back, longest=101.0), **given)
