"""Models without a head. Some end in a layer that looks like one: those are candidates."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.hostile import conv, hostile, images, mlp, named, random, sequences, tokens, vectors
from tests.hostile_facts import Configuration


def _vgg(width: int = 16) -> nn.Sequential:
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2))


@hostile(
    {},
    "a plain convolution trunk: its last layer has the form of a head",
    example=images(),
    candidates={"3": 16},
)
def conv_trunk() -> nn.Module:
    return _vgg()


@hostile(
    {},
    "a classifier cut off, its num_classes left behind",
    example=images(),
    candidates={"features.3": 16},
)
def trunk_with_num_classes() -> nn.Module:
    model = named(features=_vgg(), pool=nn.AdaptiveAvgPool2d(1), classifier=nn.Identity())
    model.num_classes = 10  # type: ignore[assignment]
    return model


@hostile(
    {},
    "features flattened over space: no axis is the layer's own",
    example=images(),
    candidates={"features.3": 16},
    replaceable=False,
)
def flattened_trunk() -> nn.Module:
    return named(features=_vgg(), flatten=nn.Flatten())


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@hostile({}, "a residual stream of convolutions, pooled", example=images(), replaceable=False)
def residual_conv_trunk() -> nn.Module:
    blocks = [
        Residual(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))
        for _ in range(4)
    ]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=False)


@hostile({}, "a pre-norm transformer trunk", example=sequences(), replaceable=False)
def residual_transformer_trunk() -> nn.Module:
    return _encoder()


@hostile(
    {},
    "a text trunk whose configuration says 2 labels, as configurations do by default",
    example=tokens(),
    replaceable=False,
)
class TextTrunkWithDefaultLabels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Configuration(num_labels=2)
        self.embedding, self.encoder = nn.Embedding(11, 8), _encoder()

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(self.embedding(ids))
        return {"last_hidden_state": hidden, "pooler_output": hidden[:, 0]}


@hostile(
    {},
    "an autoencoder: the last layer makes the input again",
    candidates={"decoder.2": 8},
)
def autoencoder() -> nn.Module:
    decoder = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8))
    return named(encoder=nn.Sequential(nn.Linear(8, 4), nn.ReLU()), decoder=decoder)


@hostile({}, "image to image: three channels come out", example=images(), candidates={"out": 3})
class ImageToImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(3, 8), conv(8, 8)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = F.interpolate(self.up(F.max_pool2d(skip, 2)), scale_factor=2.0)
        return self.out(torch.cat([x, skip], 1)).sigmoid()


@hostile(
    {},
    "a GAN's generator: the last layer makes 3 channels",
    example=lambda: random(2, 8, 2, 2),
    candidates={"2": 3},
)
def gan_generator() -> nn.Module:
    first, last = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ConvTranspose2d(8, 3, 2, stride=2)
    return nn.Sequential(first, nn.ReLU(), last, nn.Tanh())


@hostile(
    {},
    "reconstruction, mean and variance: three outputs of two sizes",
    candidates={"decoder": 8, "mean": 4, "variance": 4},
    replaceable=False,
)
class VariationalAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.mean, self.variance = mlp(), nn.Linear(8, 4), nn.Linear(8, 4)
        self.decoder = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(x)
        mean, variance = self.mean(x), self.variance(x)
        return self.decoder(mean), mean, variance


@hostile({}, "no parameters at all", example=images(), replaceable=False)
class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2).flatten(1).softmax(-1)


@hostile({}, "the model returns its input", replaceable=False)
def identity() -> nn.Module:
    return nn.Identity()


@hostile({}, "returns its input, and has a layer that never runs", replaceable=False)
class UnusedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.fc = 5, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x


@hostile({}, "embeddings only: a lookup makes no classes", example=tokens(), replaceable=False)
class EmbeddingOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(11, 8), nn.Embedding(6, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))


@hostile({}, "normalisation with learned scale and shift only", example=images(), replaceable=False)
def normaliser() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3))


@hostile({}, "an activation with a parameter for each channel", example=images(), replaceable=False)
def activation_only() -> nn.Module:
    return nn.Sequential(nn.PReLU(3), nn.Flatten())


@hostile(
    {},
    "branches side by side, as in GoogLeNet: several candidates for one output",
    example=images(),
    candidates={"wide.0": 5, "narrow.0": 3, "last.0": 8},
    replaceable=False,
)
class ConcatenatedBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.wide, self.narrow, self.last = conv(8, 5), conv(8, 3), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([branch(x) for branch in (self.wide, self.narrow, self.last)], 1).mean(
            (2, 3)
        )


@hostile({}, "every layer sees all earlier ones", example=images(size=4), replaceable=False)
class DenselyConnected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return x


@hostile(
    {},
    "the loss comes out and the logits do not",
    example=lambda: (random(2, 8), torch.tensor([0, 3])),
    candidates={"fc": 5},
    replaceable=False,
)
class OnlyTheLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = mlp(), nn.Linear(8, 5)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.fc(self.trunk(x)), target)}


@hostile(
    {},
    "two towers: similarity of every pair, so the axes are both batch",
    example=vectors(count=2),
    candidates={"left": 6, "right": 6},
    replaceable=False,
)
class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.normalize(self.left(left)) @ F.normalize(self.right(right)).t()


@hostile(
    {},
    "a recurrent trunk: states come out, and their weights make gates",
    example=sequences(),
    candidates={"": 8},
    replaceable=False,
)
def recurrent_trunk() -> nn.Module:
    return nn.LSTM(8, 8, batch_first=True)


@hostile(
    {},
    "a pyramid: a list of features of several widths",
    example=images(),
    candidates={"first.0": 4, "second.0": 8, "third.0": 16},
    replaceable=False,
)
class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 4), conv(4, 8), conv(8, 16)

    def forward(self, x: Tensor) -> list[Any]:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        return [first, second, self.third(second)]
