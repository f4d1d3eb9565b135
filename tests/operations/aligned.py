"""Pairs of modules that compute the same and are written in two ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

import surgery
from surgery import tree
from surgery.families.registry import Registry
from tests.operations.state import content


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode with random values in everything that has some."""
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        tensor = entry.tensor.detach()
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return model.eval()


def contents(model: nn.Module) -> dict[str, object]:
    """The values of every parameter and buffer, and every eps."""
    found: dict[str, object] = {
        entry.address: content(entry.tensor)
        for entry in tree.index(model).of_kind("parameter", "buffer")
    }
    return found | {name: getattr(module, "eps", None) for name, module in model.named_modules()}


def images(size: int) -> torch.Tensor:
    """Two small images."""
    return torch.randn(2, 3, size, size)


class Blocks(nn.Module):
    """Convolutions, normalised, with a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm2(self.body(x)) + x)
        return self.head(x.mean((2, 3)))


class OtherBlocks(nn.Module):
    """The same, made in another order, with modules for functions."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(6, 4)
        self.convs = nn.ModuleList(
            [nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(3, 6, 3, padding=1, bias=False)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norms[1](self.convs[1](x)))
        y = self.norms[0](self.convs[0](x))
        y += x
        return self.classify(self.pool(self.act(y)).flatten(1))


class Frozen(Blocks):
    """The same, with the arithmetic of frozen statistics written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = FrozenBatchNorm2d(6), FrozenBatchNorm2d(6)


class PackedAttention(nn.Module):
    """``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class PlainAttention(nn.Module):
    """The same with one Linear each, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.key, self.query = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, key, query = (
            each(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
            for each in (self.value, self.key, self.query)
        )
        weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


class PackedByHead(nn.Module):
    """The same with query, key and value of one head side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.qkv(x).view(*x.shape[:2], 2, 12).transpose(1, 2)
        query, key, value = packed.split(4, -1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PackedAndTurned(nn.Module):
    """Attention with packed weights whose positions behind the first two are rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = packed.unbind(0)
        query, key = (
            torch.cat([each[:, :, :2], self.turned(each[:, :, 2:])], 2) for each in (query, key)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(1, x.shape[2] + 1, dtype=x.dtype)[:, None] * torch.ones(4)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class ApartAndTurned(PackedAndTurned):
    """The same with one Linear each, the first two positions split off."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.value, self.key, self.query = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for each in (self.query, self.key, self.value):
            heads = each(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
            if each is not self.value:
                kept, moved = heads.split([2, heads.shape[2] - 2], 2)
                heads = torch.cat([kept, self.turned(moved)], 2)
            found.append(heads)
        mixed = functional.scaled_dot_product_attention(*found)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """Gate and up in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(6, 20, bias=False)
        self.down = nn.Linear(10, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)


class GatedApart(nn.Module):
    """The same in two."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(6, 10, bias=False)
        self.gate_proj = nn.Linear(6, 10, bias=False)
        self.down_proj = nn.Linear(10, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        return self.down_proj(up * functional.silu(self.gate_proj(x)))


class Turned(nn.Module):
    """A product with a weight that lies the other way round, and its bias apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 5))
        self.shift = nn.Parameter(torch.empty(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.shift


class Scaled(nn.Module):
    """A scale for each channel, shaped to be broadcast."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.empty(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.scale.view(-1, 1, 1) * x if self.scale.dim() == 1 else x * self.scale


class WithToken(nn.Module):
    """A token in front, and positions."""

    def __init__(self, *around: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(*around, 6))
        self.positions = nn.Parameter(torch.empty(*around[:-1], 4, 6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.token.expand(len(x), 1, 6)
        return self.norm(torch.cat([token, x], 1) + self.positions)


class Functional(nn.Module):
    """Batch normalisation with tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale, self.shift = (nn.Parameter(torch.empty(4)) for _ in range(2))
        self.register_buffer("middle", torch.empty(4))
        self.register_buffer("spread", torch.empty(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.middle, self.spread, self.scale, self.shift
        return functional.batch_norm(self.conv(x), *given, training=False)


def _normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def _with_what_does_nothing() -> nn.Module:
    nothing = (nn.Dropout(), nn.Identity(), nn.Dropout2d(), StochasticDepth(0.5, "row"))
    return nn.Sequential(nn.Conv2d(3, 4, 3), *nothing, nn.ReLU(), nn.Conv2d(4, 2, 1))


def _without() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


class Experts(nn.Module):
    """Three experts, each a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.up = nn.ModuleList(nn.Linear(6, 4, bias=False) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(4, 6, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.gate(x).softmax(-1)
        made = (d(functional.silu(u(x))) for u, d in zip(self.up, self.down, strict=True))
        return sum(each * shares[..., n : n + 1] for n, each in enumerate(made))


class StackedExperts(nn.Module):
    """The same, all experts in one tensor, the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.empty(3, 6, 4)), nn.Parameter(torch.empty(3, 4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.router(x).softmax(-1)
        made = (functional.silu(x @ self.up[n]) @ self.down[n] for n in range(3))
        return sum(each * shares[..., n : n + 1] for n, each in enumerate(made))


class Turned2d(nn.Module):
    """A convolution whose kernel lies with its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(2, 3, 3, 5))
        self.flat = nn.Parameter(torch.empty(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv2d(x, self.kernel.permute(3, 2, 0, 1))
        return functional.conv2d(x, self.flat.view(2, 5, 1, 1))


def _map_to_vector() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2))


def _map_to_map() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 4), nn.ReLU(), nn.Dropout(), nn.Conv2d(5, 2, 1), nn.Flatten()
    )


_MADE: dict[
    str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], torch.Tensor]]
] = {
    "blocks": (Blocks, OtherBlocks, lambda: images(5)),
    "frozen statistics": (Frozen, OtherBlocks, lambda: images(5)),
    "kernel as large as its input": (_map_to_vector, _map_to_map, lambda: images(4)),
    "packed attention": (PackedAttention, PlainAttention, lambda: torch.randn(2, 5, 8)),
    "packed by head": (PackedByHead, PlainAttention, lambda: torch.randn(2, 5, 8)),
    "two packings": (PackedByHead, PackedAttention, lambda: torch.randn(2, 5, 8)),
    "packed and rotated": (PackedAndTurned, ApartAndTurned, lambda: torch.randn(2, 5, 8)),
    "gate and up": (Gated, GatedApart, lambda: torch.randn(2, 5, 6)),
    "transposed": (Turned, lambda: nn.Linear(6, 5), lambda: torch.randn(2, 6)),
    "scales": (lambda: Scaled(4), lambda: Scaled(4, 1, 1), lambda: images(5)),
    "functional normalisation": (Functional, _normalised, lambda: images(5)),
    "what does nothing in eval mode": (_with_what_does_nothing, _without, lambda: images(5)),
    "experts": (Experts, StackedExperts, lambda: torch.randn(2, 5, 6)),
    "permuted and reshaped": (
        Turned2d,
        lambda: nn.Sequential(nn.Conv2d(3, 5, (2, 3), bias=False), nn.Conv2d(5, 2, 1, bias=False)),
        lambda: images(5),
    ),
    "tokens": (lambda: WithToken(1, 1), lambda: WithToken(1), lambda: torch.randn(2, 3, 6)),
}
PAIRS = tuple(_MADE)


def pair_of(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Two modules with different random weights, and an input."""
    one, other, x = _MADE[name]
    return shaken(one()), shaken(other()), x()


def said(donor: nn.Module, recipient: nn.Module, x: torch.Tensor) -> tuple[str, ...]:
    """What a transplant by graph notes."""
    outcome = surgery.transplant(
        shaken(donor),
        recipient.eval(),
        match="graph",
        example=x,
        registry=Registry.of(),
        min_coverage=0.2,
    )
    return tuple(outcome.plan.notes)
