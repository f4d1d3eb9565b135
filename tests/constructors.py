"""Constructors of every kind that is met: how they fill their tensors, and what else they do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

Constructor = Callable[[], nn.Module]
# A model is drawn bit for bit as the slow way draws it, and construct draws nothing.
EXACT: dict[str, Constructor] = {}
# The same bits in the end, but some were drawn while constructing, which notes say.
EAGER: dict[str, Constructor] = {}


def exact(function: Constructor) -> Constructor:
    EXACT[function.__name__] = function
    return function


def eager(function: Constructor) -> Constructor:
    EAGER[function.__name__] = function
    return function


class Made(nn.Module):
    """A module with what a function hangs on it."""

    def __init__(self, fill: Callable[[Any], None]) -> None:
        super().__init__()
        fill(self)


@exact
def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Linear(4, 5),
        nn.Embedding(7, 3, padding_idx=2),
        nn.LSTM(3, 4, 2, bidirectional=True),
        nn.MultiheadAttention(8, 2),
        nn.Bilinear(2, 3, 4),
        nn.PReLU(),
        nn.ConvTranspose1d(2, 4, 3),
    )


@exact
def transformer() -> nn.Module:
    return nn.Transformer(8, 2, 2, 2, 16, batch_first=True)


def parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


@exact
def values() -> nn.Module:
    def fill(module: Any) -> None:
        for number, tensor in enumerate(
            (
                torch.randn(3, 3),
                torch.zeros(1, 2, 3),
                torch.ones(4) * 1e-6,
                torch.tensor(2.5).log(),
                torch.FloatTensor(5, 5).uniform_(-1, 1),
                torch.from_numpy(np.arange(4.0, dtype="f4")),
                torch.randint(0, 9, (4,)),
                torch.eye(4)[torch.randperm(4)],
                torch.cat([torch.randn(2), torch.zeros(2)])[None].repeat(3, 1),
                torch.normal(0.0, 1.0, size=(3,)),
                torch.normal(torch.zeros(3), torch.ones(3)),
                torch.Tensor([1.0, 2.0]),
                torch.rand(4, 4).t(),
                torch.full((2,), 3),
                torch.bernoulli(torch.full((9,), 0.5)),
                torch.zeros_like(torch.randn(2)).add_(1),
                torch.randn(2).new_ones(3).expand(2, 3).contiguous(),
                torch.stack([torch.randn(2).sort()[0], torch.randn(2).softmax(0)]),
            )
        ):
            module.register_parameter(f"p{number}", parameter(tensor))

    return Made(fill)


@exact
def initialisers() -> nn.Module:
    def fill(module: Any) -> None:
        init = nn.init
        for name, function in (
            ("uniform", init.uniform_),
            ("normal", init.normal_),
            ("trunc", lambda t: init.trunc_normal_(t, std=0.02)),
            ("tail", lambda t: init.trunc_normal_(t, mean=3.0, a=-1, b=1)),
            ("ones", init.ones_),
            ("eye", init.eye_),
            ("xavier", init.xavier_normal_),
            ("kaiming", init.kaiming_uniform_),
            ("orthogonal", init.orthogonal_),
            ("sparse", lambda t: init.sparse_(t, 0.3)),
        ):
            with_values = nn.Parameter(torch.empty(6, 6))
            function(with_values)
            module.register_parameter(name, with_values)
        module.dirac = nn.Parameter(init.dirac_(torch.empty(2, 2, 3)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Made(fill)


@exact
def in_place() -> nn.Module:
    def fill(module: Any) -> None:
        module.a = nn.Linear(4, 6)
        module.a.weight.data[:, 0] = 0
        module.a.weight.data.clamp_(-0.1, 0.1)
        module.a.bias.data = torch.arange(6.0)
        with torch.no_grad():
            module.a.weight[1:3].normal_()
            module.a.weight.t()[2].fill_(7)
            module.a.weight.mul_(3).add_(module.a.weight.clone())
            torch.randn(4, out=module.a.weight.data[0])
        module.b = nn.Linear(4, 6, bias=False)
        module.b.weight.data.copy_(torch.as_tensor(np.linspace(0, 1, 24).reshape(6, 4)))
        module.wasted = nn.Linear(4, 4)
        module.wasted = nn.Linear(4, 4)

    return Made(fill)


@exact
def buffers() -> nn.Module:
    def fill(module: Any) -> None:
        position = torch.zeros(6, 4)
        position[:, 0::2] = torch.sin(torch.arange(6.0)[:, None] * torch.arange(2.0))
        module.register_buffer("position", position)
        module.register_buffer("once", torch.ones(2) * 3, persistent=False)
        module.register_buffer("noise", torch.randn(3))
        module.register_buffer("jitter", torch.rand(2), persistent=False)
        module.register_buffer("nothing", None)
        module.plain = torch.zeros(3) + 1
        module.listed = [torch.ones(2), (torch.full((2,), 4.0),)]
        module.copied = copy.deepcopy(position)
        module.norm = nn.BatchNorm1d(3)

    return Made(fill)


@exact
def copies() -> nn.Module:
    def fill(module: Any) -> None:
        module.a = nn.Linear(3, 3)
        module.b = copy.deepcopy(module.a)
        nn.init.zeros_(module.a.bias)
        module.c = nn.Linear(3, 3)
        module.c.load_state_dict(module.a.state_dict())
        module.c.requires_grad_(False)

    return Made(fill)


@exact
def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    return model


@exact
def dtypes() -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        doubled = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Made(_scaled))
    finally:
        torch.set_default_dtype(before)
    return nn.Sequential(
        doubled,
        nn.Linear(3, 3).half(),
        nn.Linear(3, 3, dtype=torch.bfloat16),
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    )


def _scaled(module: Any) -> None:
    # Whole numbers times a fraction have the default dtype of that moment.
    module.scale = nn.Parameter(torch.ones(3, dtype=torch.int64) * 0.1 + torch.rand(3))


@exact
def parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.Linear(2, 2),
    )


@exact
def dry_run() -> nn.Module:
    """It measures its features by running them, which moves the statistics of its norm."""

    def fill(module: Any) -> None:
        module.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.MaxPool2d(2), nn.Flatten()
        )
        module.head = nn.Linear(module.features(torch.rand(2, 3, 16, 16)).shape[1], 5)

    return Made(fill)


@exact
def computed() -> nn.Module:
    """It reads values that no random number has a part in."""

    def fill(module: Any) -> None:
        widths = torch.zeros(4) + torch.arange(4) * 2.5
        module.widths = (widths / 8).round().mul(8).int().tolist()
        if torch.ones(2).sum() > 1 and bool(torch.zeros(1) == 0):
            module.layer = nn.Linear(3, 3 + int(widths.max()))

    return Made(fill)


@eager
def reading() -> nn.Module:
    def fill(module: Any) -> None:
        module.a = nn.Linear(4, 4)
        module.total = float(module.a.weight.detach().sum())
        module.array = module.a.bias.detach().numpy().copy()
        module.b = nn.Linear(4, 4)

    return Made(fill)


@eager
def orthogonal() -> nn.Module:
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 4))


@eager
def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    return nn.Sequential(layer, nn.Linear(4, 4))


@eager
def own_generator() -> nn.Module:
    def fill(module: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        module.a = nn.Linear(4, 4)
        nn.init.normal_(module.a.weight, generator=generator)
        nn.init.trunc_normal_(module.a.bias, generator=generator)
        module.b = nn.Parameter(torch.randn(3, generator=generator))
        module.c = nn.Linear(4, 4)

    return Made(fill)


@eager
def seeding() -> nn.Module:
    def fill(module: Any) -> None:
        module.a = nn.Linear(4, 4)
        torch.manual_seed(7)
        module.b = nn.Linear(4, 4)

    return Made(fill)


@eager
def forking() -> nn.Module:
    def fill(module: Any) -> None:
        module.a = nn.Linear(4, 4)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module.b = nn.Linear(4, 4)
            module.a.reset_parameters()
        module.c = nn.Linear(4, 4)

    return Made(fill)


@eager
def aliased() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.seen = layer.weight.data
    layer.again = nn.Parameter(layer.bias.data)
    return nn.Sequential(layer, nn.Linear(2, 2))


PRETRAINED = torch.arange(12.0).reshape(4, 3)


@eager
def given() -> nn.Module:
    return nn.Sequential(nn.Embedding.from_pretrained(PRETRAINED), nn.Linear(3, 2))
