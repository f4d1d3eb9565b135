"""Implementations of architectures in several libraries, and how to make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 1000
LENGTH = 64


@dataclass(frozen=True)
class Model:
    """A model of a library: its name there, and what its configuration is given."""

    library: str
    name: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.library} {self.name}"

    def make(self) -> nn.Module:
        """The model, with random weights, in eval mode."""
        return MAKERS[self.library](self.name, dict(self.settings)).eval()


def _torchvision(name: str, settings: dict[str, Any]) -> nn.Module:
    from torchvision.models import get_model

    if name in ("inception_v3", "googlenet"):
        settings["init_weights"] = False
    return get_model(name, weights=None, **settings)


def _timm(name: str, settings: dict[str, Any]) -> nn.Module:
    import timm

    settings.setdefault("num_classes", 1000)
    return timm.create_model(name, **settings)  # type: ignore[no-any-return]


def _transformers(name: str, settings: dict[str, Any]) -> nn.Module:
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class(**settings)
    if not name.endswith("Model"):
        config.num_labels = settings.get("num_labels", 1000)
    return kind(config)  # type: ignore[no-any-return]


def _efficientnet(name: str, settings: dict[str, Any]) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name(name)  # type: ignore[no-any-return]


def _open_clip(name: str, settings: dict[str, Any]) -> nn.Module:
    import open_clip

    model = open_clip.create_model(name, pretrained=None, force_custom_text=True)
    return getattr(model, settings["part"])  # type: ignore[no-any-return]


def _segmentation(name: str, settings: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch

    encoders = segmentation_models_pytorch.encoders
    return encoders.get_encoder(name, weights=None)  # type: ignore[no-any-return]


class PlainBert(nn.Module):
    """The mathematics of BERT over ``nn.TransformerEncoder``."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        vocabulary: int = VOCABULARY,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, activation="gelu", batch_first=True, layer_norm_eps=1e-12
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pool = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states, and the first one pooled."""
        places = self.places(torch.arange(ids.shape[1], device=ids.device))
        kinds = self.kinds(torch.zeros_like(ids))
        hidden = self.encoder(self.norm(self.words(ids) + kinds + places))
        return hidden, torch.tanh(self.pool(hidden[:, 0]))


class PlainGpt(nn.Module):
    """The mathematics of GPT-2 with ``nn.Linear``, query, key and value each by itself."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(PlainGptBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states."""
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)  # type: ignore[no-any-return]


class PlainGptBlock(nn.Module):
    """Attention that looks back, and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The hidden states after this block."""
        y = self.before(x)
        query, key, value = (
            each(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = functional.gelu(self.up(self.between(x)), approximate="tanh")
        return x + self.down(y)  # type: ignore[no-any-return]


def _plain(name: str, settings: dict[str, Any]) -> nn.Module:
    return {"BERT": PlainBert, "GPT-2": PlainGpt}[name](48, 3, 4)


MAKERS: Mapping[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "efficientnet-pytorch": _efficientnet,
    "open_clip": _open_clip,
    "segmentation-models-pytorch": _segmentation,
    "plain torch": _plain,
}
