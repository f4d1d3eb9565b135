"""Models without a head, one for every form of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Channels(nn.Module):
    """Convolutions: [N, C] and as many places as the images have axes, or the channels last."""

    def __init__(self, width: int = 6, axes: int = 2, last: bool = False) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        self.conv, self.norm = kind(3, width, 3), norm(width)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return x.movedim(1, -1) if self.last else x


class Tokens(nn.Module):
    """A residual stream of words: [N, T, C], with a norm behind."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.mix, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        return self.norm(x + self.mix(x).relu())


@dataclass
class Answer:
    """An output of several tensors."""

    hidden: Tensor
    pooled: Tensor | None = None


class Several(nn.Module):
    """Words, and the first of them made one vector a sample."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.trunk, self.pool = Tokens(width), nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Answer:
        hidden = self.trunk(input_ids, attention_mask)
        return Answer(hidden, self.pool(hidden[:, 0]).tanh())


class Place(nn.Module):
    """A network with a place for its head, and what it says of its classes."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU())
        self.fc = nn.Identity()
        self.num_classes = 0
        self.config = SimpleNamespace(num_labels=0, id2label={})

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


class Pair(nn.Module):
    """Two places that the same features go through, and their mean."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Linear(8, width)
        self.one, self.two = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        return (self.one(x) + self.two(x)) / 2


def vectors() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def images(axes: int = 2) -> Tensor:
    return torch.randn(2, 3, *(9, 8, 7)[:axes], generator=torch.Generator().manual_seed(0))


def words() -> dict[str, Tensor]:
    ids = torch.arange(10).reshape(2, 5)
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5])}


class Trunk(NamedTuple):
    """A model, its example, and how a head is put on it."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    options: dict[str, Any]
    wrapped: bool


TRUNKS: dict[str, Trunk] = {
    "vectors": Trunk(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU()), vectors, {}, True),
    "signals": Trunk(lambda: Channels(axes=1), lambda: images(1), {}, True),
    "images": Trunk(Channels, images, {}, True),
    "videos": Trunk(lambda: Channels(axes=3), lambda: images(3), {}, True),
    "channels last": Trunk(lambda: Channels(last=True), images, {"pool": "max"}, True),
    "words": Trunk(Tokens, words, {"pool": "mean"}, True),
    "last word": Trunk(Tokens, words, {"pool": "last"}, True),
    "pooled": Trunk(Several, words, {}, True),
    "chosen": Trunk(Several, words, {"attach": "output.hidden", "pool": "first"}, True),
    "place": Trunk(Place, vectors, {}, False),
    "pair of places": Trunk(Pair, vectors, {}, False),
}


def attach(name: str, model: nn.Module, number: int = 4, **more: Any) -> Any:
    """Put a head on one of these."""
    import surgery

    trunk = TRUNKS[name]
    options = {"attach": True, "example": trunk.example(), **trunk.options, **more}
    return surgery.replace_head(model, number, **options)


def run(model: nn.Module, name: str) -> Tensor:
    """What a model answers to its example."""
    given = TRUNKS[name].example()
    found: Tensor = model(**given) if isinstance(given, dict) else model(given)
    return found
