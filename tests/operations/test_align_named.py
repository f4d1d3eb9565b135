"""What two models differ in, named: heads, experts, groups, tables, bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import contents, images, shaken

NOTHING = Registry.of()
WORDS = torch.randn(2, 5, 16)


def brought(donor: nn.Module, recipient: nn.Module, x: Tensor, **options: Any) -> list[str]:
    """What a transplant says about itself."""
    outcome = surgery.transplant(
        donor.eval(), recipient.eval(), match="graph", example=x, registry=NOTHING, **options
    )
    with torch.no_grad():
        assert torch.allclose(donor(x), recipient(x), atol=1e-5)
    return list(outcome.plan.notes)


def refused(donor: nn.Module, recipient: nn.Module, x: Tensor, **options: Any) -> str:
    """What a transplant is refused for; nothing was touched."""
    before = contents(recipient)
    with pytest.raises(PlanError) as caught:
        brought(donor, recipient, x, **options)
    assert contents(recipient) == before
    return str(caught.value)


class Packed(nn.Module):
    """``nn.MultiheadAttention``."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class ByHand(nn.Module):
    """The same by hand."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.value, self.key, self.query, self.out = (nn.Linear(16, 16) for _ in range(4))

    def parts(self, x: Tensor) -> list[Tensor]:
        made = (each(x) for each in (self.query, self.key, self.value))
        return [each.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for each in made]

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x)
        weights = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return self.out((weights.softmax(-1) @ value).transpose(1, 2).reshape(x.shape))


class Fused(ByHand):
    """The same in one operation."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(*self.parts(x))
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


KINDS: dict[str, Callable[[int], nn.Module]] = {"packed": Packed, "by hand": ByHand, "fused": Fused}
BOTH = [(one, other) for one in KINDS for other in KINDS]


@pytest.mark.parametrize(("one", "other"), BOTH)
def test_another_number_of_heads_is_named_whatever_attention_is_written_in(one: str, other: str):
    donor, recipient = KINDS[one](4), KINDS[other](8)
    said = refused(donor, recipient, WORDS)
    assert "attention num_heads: 4 in the donor" in said
    assert "attention head_dim: 4 in the donor" in said
    assert ", 8 in the recipient" in said
    assert ", 2 in the recipient" in said
    found = surgery.align(donor, recipient, example=WORDS, registry=NOTHING)
    assert {(d.name, d.theirs, d.ours) for d in found.differences} >= {("num_heads", 4, 8)}


@pytest.mark.parametrize(("one", "other"), BOTH)
def test_as_many_heads_are_no_difference(one: str, other: str):
    found = surgery.align(KINDS[one](4), KINDS[other](4), example=WORDS, registry=NOTHING)
    assert not found.differences


@pytest.mark.parametrize("other", KINDS)
def test_the_number_of_heads_is_set_where_it_is_an_attribute(other: str):
    notes = brought(ByHand(4), KINDS[other](8), WORDS, differences="set")
    assert any(note.endswith("heads 8 -> 4") for note in notes)


def test_the_attention_of_transformers_names_its_heads_and_takes_them_over():
    transformers = pytest.importorskip("transformers")

    def vit(heads: int) -> nn.Module:
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32}
        config = transformers.ViTConfig(
            image_size=16, patch_size=8, num_attention_heads=heads, **sizes
        )
        return transformers.ViTModel(config, add_pooling_layer=False)

    given = {"match": "graph", "example": torch.randn(1, 3, 16, 16), "registry": NOTHING}
    with pytest.raises(PlanError, match="num_heads: 3 in the donor"):
        surgery.transplant(vit(3), vit(6), **given)


class Experts(nn.Module):
    """A few of four experts for each word."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.k = count
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        best, which = shares.topk(self.k, -1)
        taken = torch.zeros_like(shares).scatter(-1, which, best)
        parts = [each(x) * taken[..., n : n + 1] for n, each in enumerate(self.experts)]
        return torch.stack(parts).sum(0)


def test_another_number_of_experts_for_each_word_is_named_and_set():
    assert "topk k: 1 in the donor (the model), 2 in the recipient" in refused(
        Experts(1), Experts(2), WORDS
    )
    recipient = Experts(2)
    notes = brought(Experts(1), recipient, WORDS, differences="set")
    assert recipient.k == 1
    assert "set as in the donor: k 2 -> 1" in notes


def test_other_groups_of_a_convolution_are_named():
    one, other = (nn.Sequential(nn.Conv2d(8, 8, 3, groups=n)) for n in (2, 4))
    said = refused(one, other, torch.randn(1, 8, 5, 5), min_coverage=0)
    assert "groups: 2 in the donor (0), 4 in the recipient" in said


class Sines(nn.Module):
    """A table that is added."""

    def __init__(self, table: Tensor, name: str = "sines", saved: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer(name, table, persistent=saved)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + getattr(self, self.name)[: x.shape[-2]]


class Rotated(Sines):
    """A table on one of two ways that meet again."""

    def forward(self, x: Tensor) -> Tensor:
        x, table = self.linear(x), getattr(self, self.name)
        return x * table.cos() + x.roll(1, -1) * table.sin()


class Relative(nn.Module):
    """A table of places in a learned one."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(4, 4), nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.bias[self.index.flatten()].view(3, 4)


class Masked(nn.Module):
    """Each sees what stands before it, or a little further."""

    def __init__(self, further: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(3, 3).tril(further).bool())

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return (x @ x.transpose(-1, -2)).masked_fill(~self.mask, -1e9).softmax(-1) @ x


TABLE = torch.arange(12.0).view(3, 4)
CHANGED = TABLE.clone()
CHANGED[2, 1] += 0.5
PLACES = torch.tensor([[0, 1, 2]])
TABLES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "added": (
        lambda: Sines(TABLE),
        lambda: Sines(CHANGED, "waves"),
        "waves constant table largest difference 0.5 at [2, 1]: 9 in the donor (sines), 9.5 in",
    ),
    "not saved": (
        lambda: Sines(TABLE, saved=False),
        lambda: Sines(CHANGED, saved=False),
        "sines constant table largest difference 0.5 at [2, 1]",
    ),
    "rotated": (
        lambda: Rotated(TABLE),
        lambda: Rotated(CHANGED, "angles"),
        "angles constant table largest difference 0.5 at [2, 1]",
    ),
    "places": (
        lambda: Relative(PLACES),
        lambda: Relative(torch.tensor([0, 5, 2])),
        "index constant table largest difference 4 at [1]: 1 in the donor (index), 5 in",
    ),
    "mask": (
        lambda: Masked(0),
        lambda: Masked(1),
        "mask constant table largest difference 1 at [0, 1]: 0 in the donor (mask), 1 in",
    ),
}


@pytest.mark.parametrize("differences", ["refuse", "set"])
@pytest.mark.parametrize("name", TABLES)
def test_another_table_is_named_and_never_copied(name: str, differences: str):
    one, other, named = TABLES[name]
    said = refused(one(), other(), torch.randn(3, 4), differences=differences)
    assert named in said
    assert "tables are compared, not copied" in said
    # The same table is no difference.
    notes = brought(one(), one(), torch.randn(3, 4))
    assert not any("constant table" in note for note in notes)


def test_what_the_error_shows_for_a_table_helps():
    donor, recipient = Sines(TABLE), Sines(CHANGED, "waves")
    said = refused(donor, recipient, torch.randn(3, 4))
    step = "recipient.get_buffer('waves').copy_(donor.get_buffer('sines'))"
    assert step in said
    exec(step, {"donor": donor, "recipient": recipient})
    brought(donor, recipient, torch.randn(3, 4))


def test_a_longer_table_of_which_the_example_reads_a_part_is_said():
    longer = torch.cat([TABLE, TABLE])
    notes = brought(Sines(TABLE), Sines(longer, "waves"), torch.randn(3, 4))
    (note,) = (n for n in notes if "constant table" in n)
    assert note.startswith("differs, and this example does not show it: waves constant table shape")
    assert "(3, 4) in the donor (sines), (6, 4) in the recipient" in note


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


Made = Callable[[], nn.Module]
UNREACHED: dict[str, tuple[Made, Made, str]] = {
    "relu and relu6": (nn.ReLU, nn.ReLU6, "max: none in the donor (1), 6"),
    "relu and hardtanh": (nn.ReLU, lambda: nn.Hardtanh(0, 100), "max: none in the donor (1), 100"),
    "hardtanh and relu": (lambda: nn.Hardtanh(0, 100), nn.ReLU, "max: 100 in the donor (1), none"),
    "two hardtanhs": (
        lambda: nn.Hardtanh(0, 100),
        lambda: nn.Hardtanh(0, 90),
        "max_val: 100 in the donor (1), 90",
    ),
    "hardtanh and clamp": (
        lambda: nn.Hardtanh(0, 100),
        lambda: Function(lambda x: x.clamp(0, 90)),
        "max: 100 in the donor (1), 90",
    ),
    "nothing and clamp": (
        nn.Identity,
        lambda: Function(lambda x: x.clamp(-100, 100)),
        "min: none in the donor (the model), -100",
    ),
    "the smaller of two": (
        nn.ReLU,
        lambda: Function(lambda x: torch.minimum(x.relu(), torch.tensor(100.0))),
        "max: none in the donor (the model), a constant",
    ),
    "no number": (
        nn.Identity,
        lambda: Function(torch.nan_to_num),
        "nan: none in the donor (the model), 0",
    ),
    "softplus": (
        lambda: nn.Softplus(threshold=20),
        lambda: nn.Softplus(threshold=100),
        "threshold: 20 in the donor (1), 100",
    ),
    "on one of two ways": (
        lambda: Function(lambda x: x + x.roll(1, -1).tanh().sin()),
        lambda: Function(lambda x: x.clamp(max=100) + x.roll(1, -1).tanh().sin()),
        "max: none in the donor (the model), 100",
    ),
}


def around(layer: nn.Module) -> nn.Module:
    return shaken(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 4, 1)))


@pytest.mark.parametrize("name", UNREACHED)
def test_a_bound_that_no_number_reached_is_said(name: str):
    one, other, named = UNREACHED[name]
    notes = brought(around(one()), around(other()), images(4))
    assert any("this example does not show it" in n and named in n for n in notes), notes


ALIKE: dict[str, tuple[Made, Made]] = {
    "relu and clamp": (nn.ReLU, lambda: Function(lambda x: x.clamp(min=0))),
    "relu and threshold": (nn.ReLU, lambda: nn.Threshold(0, 0)),
    "relu6 and hardtanh": (nn.ReLU6, lambda: nn.Hardtanh(0, 6)),
    "hard sigmoid": (nn.Hardsigmoid, lambda: Function(lambda x: functional.relu6(x + 3) / 6)),
    "hard swish": (nn.Hardswish, lambda: Function(lambda x: x * functional.relu6(x + 3) / 6)),
    "dropout": (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.5)),
}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", ALIKE)
def test_the_same_bound_in_another_operation_is_no_difference(name: str, back: bool):
    one, other = reversed(ALIKE[name]) if back else ALIKE[name]
    notes = brought(around(one()), around(other()), images(4))
    assert not any("does not show it" in note for note in notes), notes


SHOWN: dict[str, tuple[Made, Made, str]] = {
    "leaky": (
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.LeakyReLU(0.2),
        "negative_slope: 0.1 in the donor (1), 0.2",
    ),
    "elu": (lambda: nn.ELU(1.0), lambda: nn.ELU(0.9), "alpha: 1.0 in the donor (1), 0.9"),
    "softmax": (lambda: nn.Softmax(1), lambda: nn.Softmax(2), "dim: 1 in the donor (1), 2"),
    "clamp": (
        lambda: Function(lambda x: x.clamp(-0.1, 0.1)),
        lambda: Function(lambda x: x.clamp(-0.2, 0.1)),
        "clamp min: -0.1 in the donor (1), -0.2",
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_settings_of_an_activation_are_named(name: str):
    one, other, named = SHOWN[name]
    assert named in refused(around(one()), around(other()), torch.randn(1, 3, 4, 4))


def test_biases_that_have_no_place_are_named():
    """The layers look the same, and the recipient adds nothing where the donor adds numbers."""
    donor, recipient = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias))
        for bias in (True, False)
    )
    with pytest.raises(PlanError, match=r"found: 2\.bias is not zero"):
        surgery.transplant(donor, recipient, match="graph", example=torch.zeros(2, 4))
    nn.init.zeros_(donor[2].bias)
    surgery.transplant(donor, recipient, match="graph", example=torch.zeros(2, 4))
