"""New entries hold what the layer's constructor would draw; what lies behind a head carries on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import surgery
from surgery.errors import ArgumentError, PlanError
from tests.hostile import Headed, Pair, images, mlp, random, sequences, vectors

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")

Make = Callable[..., nn.Module]


class Bilinear(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = mlp(), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.head(x, x[:, :3])


def volumes() -> Tensor:
    return random(2, 3, 4, 4, 4)


# How the layer is made for n classes, the trunk in front of it, and the example.
LAYERS: dict[str, tuple[Make, Make, Callable[[], Any]]] = {
    "linear": (lambda n, **k: nn.Linear(8, n, **k), nn.Linear, vectors()),
    "no bias": (lambda n, **k: nn.Linear(8, n, bias=False, **k), nn.Linear, vectors()),
    "conv1d": (lambda n, **k: nn.Conv1d(8, n, 3, **k), nn.Conv1d, lambda: random(2, 3, 6)),
    "conv2d": (lambda n, **k: nn.Conv2d(8, n, (3, 1), **k), nn.Conv2d, images()),
    "conv3d": (lambda n, **k: nn.Conv3d(8, n, 1, bias=False, **k), nn.Conv3d, volumes),
    "grouped": (lambda n, **k: nn.Conv2d(8, 2 * n, 3, groups=2, **k), nn.Conv2d, images()),
    "transposed": (lambda n, **k: nn.ConvTranspose2d(8, n, 2, **k), nn.Conv2d, images()),
    "transposed, grouped": (
        lambda n, **k: nn.ConvTranspose1d(8, 4 * n, 2, groups=4, **k),
        nn.Conv1d,
        lambda: random(2, 3, 6),
    ),
    "bilinear": (lambda n, **k: nn.Bilinear(8, 3, n, **k), nn.Bilinear, vectors()),
}
layers = pytest.mark.parametrize("name", LAYERS)


def model_with(name: str, classes: int = 5) -> nn.Module:
    make, trunk, _ = LAYERS[name]
    if trunk is nn.Bilinear:
        return Bilinear(make(classes))
    return Pair(mlp() if trunk is nn.Linear else trunk(3, 8, 1), make(classes))


def classes_of(layer: nn.Module) -> int:
    return next(getattr(layer, n) for n in ("out_features", "out_channels") if hasattr(layer, n))


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, its = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def public(layer: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(layer).items() if not name.startswith("_")}


@layers
@settings(max_examples=25)
@given(classes=st.integers(1, 20), seed=st.integers(0, 99))
def test_default_draws_exactly_what_the_constructor_draws(
    name: str, classes: int, seed: int
) -> None:
    """The same seed gives the same layer, and leaves the same random state behind."""
    model, example = model_with(name), LAYERS[name][2]()
    torch.manual_seed(seed)
    twin = LAYERS[name][0](classes)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    surgery.replace_head(model, classes_of(twin), heads="head", example=example)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(model.head, twin)
    assert public(model.head) == public(twin)


@layers
def test_a_generator_gives_the_same_and_leaves_the_global_state_alone(name: str) -> None:
    model, example = model_with(name), LAYERS[name][2]()
    torch.manual_seed(7)
    twin = LAYERS[name][0](6)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(7)
    surgery.replace_head(
        model, classes_of(twin), heads="head", example=example, generator=generator
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert same(model.head, twin)
    assert not torch.equal(generator.get_state(), torch.Generator().manual_seed(7).get_state())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
)
def test_every_dtype_draws_as_its_constructor(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 5, dtype=dtype))
    torch.manual_seed(3)
    twin = nn.Linear(8, 7, dtype=dtype)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    surgery.replace_head(model, 7, heads="1", example=torch.ones(2, 8, dtype=dtype))
    assert same(model[1], twin)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(torch.ones(2, 8, dtype=dtype)).dtype == dtype


def test_on_meta_nothing_is_drawn() -> None:
    with torch.device("meta"):
        model = Headed()
    state = torch.get_rng_state()
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert outcome.new["fc.weight"].shape == (7, 8)


def test_zeros_are_zeros_and_draw_nothing() -> None:
    model, state = Headed(), torch.get_rng_state()
    surgery.replace_head(model, 7, heads="fc", init="zeros", example=vectors()())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.fc.weight.any()
    assert not model.fc.bias.any()
    assert model.fc.weight.requires_grad


def test_a_callable_fills_the_weight_and_the_bias_is_as_by_default() -> None:
    model = Headed()
    outcome = surgery.replace_head(
        model, 7, heads="fc", example=vectors()(), init=lambda w: nn.init.constant_(w, 0.5)
    )
    assert (model.fc.weight == 0.5).all()
    assert 0 < model.fc.bias.abs().max() <= 1 / math.sqrt(8)
    outcome.undo()
    surgery.replace_head(model, 7, heads="fc", example=vectors()(), init=nn.init.orthogonal_)
    torch.testing.assert_close(model.fc.weight @ model.fc.weight.T, torch.eye(7))


@pytest.mark.parametrize(
    ("init", "says"),
    [
        (lambda w: None, "left 56 of 56 values unset"),
        (lambda w: torch.zeros_like(w), "left 56 of 56 values unset"),
        (lambda w: w[:3].zero_(), "left 32 of 56 values unset"),
        (lambda w: w.resize_(3), r"another shape, \(3,\)"),
        (lambda w: w.nonsense(), "raised AttributeError"),
        ("xavier", "no way to initialise a head"),
        (None, "no way to initialise a head"),
        (nn.Linear, "no way to initialise a head"),
    ],
)
def test_an_init_that_does_not_fill_is_refused(init: Any, says: str) -> None:
    model, state = Headed(), torch.get_rng_state()
    weight = model.fc.weight
    with pytest.raises(ArgumentError, match=says) as raised:
        surgery.replace_head(model, 7, heads="fc", example=vectors()(), init=init)
    assert raised.value.where == "init"
    assert raised.value.fix == "init=torch.nn.init.xavier_uniform_"
    assert model.fc.weight is weight
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_generators_and_flags_are_refused() -> None:
    with pytest.raises(ArgumentError, match="no source of random numbers") as raised:
        surgery.replace_head(Headed(), 7, generator=3)  # type: ignore[arg-type]
    assert (raised.value.where, raised.value.found) == ("generator", "3")
    with pytest.raises(ArgumentError, match="trainable, or not") as raised:
        surgery.replace_head(Headed(), 7, trainable="yes")  # type: ignore[arg-type]
    assert (raised.value.where, raised.value.found) == ("trainable", "'yes'")


def test_more_classes_than_memory_are_refused_while_planning() -> None:
    model = Headed()
    with pytest.raises(PlanError, match="no memory for a tensor of") as raised:
        surgery.replace_head(model, 10**15, heads="fc", example=vectors()())
    assert raised.value.where == "fc.weight"
    assert "32,000,000,000,000,000 bytes on cpu" in str(raised.value)
    assert model.fc.out_features == 5


def new_style() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(8, 5))


def old_style() -> nn.Module:
    return weight_norm(nn.Linear(8, 5))


@pytest.mark.parametrize("make", [new_style, old_style])
def test_a_weight_given_as_direction_and_magnitude_starts_as_drawn(make: Make) -> None:
    model = Pair(mlp(), make())
    torch.manual_seed(3)
    twin = nn.Linear(8, 7)
    torch.manual_seed(3)
    surgery.replace_head(model, 7, heads="head", example=vectors()())
    model(vectors()())
    torch.testing.assert_close(model.head.weight, twin.weight)
    assert torch.equal(model.head.bias, twin.bias)


@pytest.mark.parametrize("make", [new_style, old_style])
def test_zeros_of_direction_and_magnitude_are_zero_and_not_nan(make: Make) -> None:
    model = Pair(mlp(), make())
    surgery.replace_head(model, 7, heads="head", example=vectors()(), init="zeros")
    output = model(vectors()())
    assert torch.equal(output, torch.zeros(2, 7))
    output.sum().backward()
    assert all(not p.grad.isnan().any() for p in model.head.parameters())


@pytest.mark.parametrize(
    "make", [parametrizations.spectral_norm, spectral_norm], ids=["new style", "old style"]
)
def test_an_estimated_norm_is_of_the_right_size_at_once(make: Callable[..., nn.Module]) -> None:
    model = Pair(mlp(), make(nn.Linear(8, 5)))
    outcome = surgery.replace_head(model, 7, heads="head", example=vectors()())
    model.eval()(vectors()())
    norm = torch.linalg.matrix_norm(model.head.weight, 2)
    assert 1 <= norm < 4
    outcome.undo()
    with pytest.raises(ArgumentError, match="zeros have none") as raised:
        surgery.replace_head(model, 7, heads="head", example=vectors()(), init="zeros")
    assert raised.value.found == "'zeros'"


def test_pruned_heads_come_back_whole() -> None:
    for prune_it in (
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        lambda m: prune.ln_structured(m, "weight", 0.4, 2, 0),
    ):
        model = Pair(mlp(), prune_it(nn.Linear(8, 5)))
        mask = model.head.weight_mask
        outcome = surgery.replace_head(model, 7, heads="head", example=vectors()())
        model(vectors()())
        assert model.head.weight_mask.shape == (7, 8)
        assert model.head.weight.all()
        outcome.undo()
        assert model.head.weight_mask is mask


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((5, 1), 2.0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class LowRank(nn.Module):
    """An update of rank two that starts from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def test_nested_parametrizations_follow() -> None:
    head = parametrizations.weight_norm(nn.Linear(8, 5))
    parametrize.register_parametrization(head, "weight", Scaled())
    model = Pair(mlp(), head)
    outcome = surgery.replace_head(model, 7, heads="head", example=vectors()())
    assert model(vectors()()).shape == (2, 7)
    assert model.head.parametrizations.weight[1].scale.shape == (7, 1)
    assert outcome.undo()(vectors()()).shape == (2, 5)


def test_a_low_rank_update_starts_from_zero_again() -> None:
    head = nn.Linear(8, 5)
    parametrize.register_parametrization(head, "weight", LowRank())
    model = Pair(mlp(), head)
    down = head.parametrizations.weight[0].down
    torch.manual_seed(3)
    twin = nn.Linear(8, 7)
    torch.manual_seed(3)
    surgery.replace_head(model, 7, heads="head", example=vectors()())
    update = model.head.parametrizations.weight[0]
    assert torch.equal(update.up, torch.zeros(7, 2))
    assert update.down is down
    assert torch.equal(model.head.weight, twin.weight)


def test_attention_whose_output_layer_is_the_head() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, x, x, need_weights=False)[0]

    model = Attention()
    surgery.replace_head(model, 3, heads="attend.out_proj", example=sequences()())
    assert model(sequences()()).shape == (2, 5, 3)


class Behind(Headed):
    """One tensor on the class axis behind the head."""

    def __init__(self, tensor: Tensor, plain: bool = False) -> None:
        super().__init__()
        if plain:
            self.offset = tensor
        else:
            self.register_buffer("offset", tensor)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.offset.dtype == torch.bool:
            return logits.masked_fill(~self.offset, -100.0)
        return logits + self.offset


@pytest.mark.parametrize("plain", [False, True], ids=["buffer", "plain tensor"])
@pytest.mark.parametrize(
    ("held", "becomes"),
    [
        (torch.full((5,), 2.5), torch.full((7,), 2.5)),
        (torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.full((7,), 3.0)),
        (torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), torch.full((1, 7), 3.0)),
        (torch.ones(5, dtype=torch.bool), torch.ones(7, dtype=torch.bool)),
        (torch.arange(5), torch.arange(7)),
        (torch.full((5,), 4), torch.full((7,), 4)),
        (torch.full((5,), math.nan), torch.full((7,), math.nan)),
    ],
)
def test_what_lies_behind_carries_on(held: Tensor, becomes: Tensor, plain: bool) -> None:
    model = Behind(held.clone(), plain)
    outcome = surgery.replace_head(model, 7, heads="fc", example=vectors()())
    torch.testing.assert_close(model.offset, becomes, equal_nan=True)
    made_up = held.is_floating_point() and held.unique().numel() > 1 and not held.isnan().any()
    assert ("offset holds the mean over the old classes" in outcome.plan.notes) == made_up
    outcome.undo()
    torch.testing.assert_close(model.offset, held, equal_nan=True)


@pytest.mark.parametrize(
    "held",
    [torch.tensor([True, True, False, True, True]), torch.tensor([3, 1, 4, 1, 5])],
    ids=["mask", "numbers"],
)
def test_what_nobody_can_continue_is_refused_with_the_remedy(held: Tensor) -> None:
    model = Behind(held)
    with pytest.raises(PlanError, match="a value of its own for every class") as raised:
        surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert raised.value.where == "offset"
    assert model.offset is held
    exec(raised.value.fix.split(": ", 1)[1], {"model": model})
    surgery.replace_head(model, 7, heads="fc", example=vectors()())
    assert len(model.offset) == 7


class Affine(nn.Module):
    """A head of no known class, that adds its bias and multiplies its scale itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))
        self.bias = nn.Parameter(torch.arange(5.0))
        self.scale = nn.Parameter(torch.arange(1.0, 6.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.bias) * self.scale


def test_a_custom_layers_own_bias_is_made_anew_and_its_scale_carries_on() -> None:
    model = Pair(mlp(), Affine())
    outcome = surgery.replace_head(model, 7, heads="head", example=vectors()())
    assert 0 < model.head.bias.abs().max() < 1
    assert torch.equal(model.head.scale, torch.full((7,), 3.0))
    outcome.undo()
    surgery.replace_head(model, 7, heads="head", example=vectors()(), init="zeros")
    assert torch.equal(model.head.bias, torch.zeros(7))


@pytest.mark.parametrize("trainable", [True, False, None])
@pytest.mark.parametrize("frozen", [True, False])
def test_new_parameters_are_trainable_unless_asked_otherwise(
    trainable: bool | None, frozen: bool
) -> None:
    model = Headed().requires_grad_(not frozen)
    surgery.replace_head(model, 7, heads="fc", example=vectors()(), trainable=trainable)
    expected = not frozen if trainable is None else trainable
    assert {p.requires_grad for p in model.fc.parameters()} == {expected}
    assert {p.requires_grad for p in model.trunk.parameters()} == {not frozen}


def test_new_parameters_made_in_inference_mode_can_be_trained() -> None:
    model = Headed()
    with torch.inference_mode():
        surgery.replace_head(model, 7, heads="fc", example=vectors()())
    model(vectors()()).sum().backward()
    assert model.fc.weight.grad is not None


def test_a_channels_last_head_stays_channels_last() -> None:
    model = Pair(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)).to(memory_format=torch.channels_last)
    surgery.replace_head(model, 7, heads="head", example=images()())
    weight = model.head.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
