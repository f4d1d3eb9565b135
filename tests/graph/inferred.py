"""Models without an example, what to infer for them, and how to check that it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from surgery.graph.example import Example
from surgery.graph.infer import infer_example
from surgery.graph.record import needs_values, record_graph
from surgery.graph.structure import replace_tensors, tensors

Build = Callable[[], nn.Module]


class Attempts:
    """The recorder as an attempt, and how often it was asked."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.count = 0
        self.passed: list[tuple[Example, bool]] = []

    def __call__(self, example: Example, train: bool) -> Exception | None:
        self.count += 1
        error = self.record(example, train, "meta")
        if error is not None and needs_values(error.__cause__):
            error = self.record(example, train, "meta", "real")
        if error is None:
            self.passed.append((example, train))
        return error

    def record(self, example: Example, train: bool, *backends: Any) -> Exception | None:
        try:
            record_graph(self.model, example, train=train, operations=False, backends=backends)
        except Exception as error:
            return error
        return None


def infer(model: nn.Module) -> Example:
    return infer_example(model, Attempts(model))


def shapes(example: Example) -> list[tuple[int, ...]]:
    given = {"args": example.args, **example.kwargs}
    return [tuple(tensor.shape) for _, tensor in tensors(given)]


def run_for_real(model: nn.Module, example: Example, train: bool) -> list[Tensor]:
    def real(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape).to(tensor.dtype) if tensor.is_meta else tensor

    example = example.in_mode(train)
    args = tuple(replace_tensors(value, real) for value in example.args)
    kwargs = {name: replace_tensors(value, real) for name, value in example.kwargs.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.train(train)(*args, **kwargs)
    return [tensor for _, tensor in tensors(output)]


class Digits(nn.Module):
    """Two convolutions and a view by a number of features, as in every tutorial."""

    def __init__(self, features: int, padding: int = 0) -> None:
        super().__init__()
        self.features = features
        self.conv1, self.conv2 = (
            nn.Conv2d(1, 10, 5, padding=padding),
            nn.Conv2d(10, 20, 5, padding=padding),
        )
        self.fc1, self.fc2 = nn.Linear(features, 50), nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2).relu()
        x = F.max_pool2d(self.conv2(x), 2).relu()
        return self.fc2(self.fc1(x.view(-1, self.features)).relu()).log_softmax(1)


class HandmadeViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.position = nn.Parameter(torch.zeros(1, 50, 32))
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.fc(x[:, 0])


class HeadRegisteredFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.neck, self.stem = nn.Linear(16, 10), nn.Linear(32, 16), nn.Conv2d(3, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.stem(x).mean((2, 3))))


class RecurrentText(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], batch_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12, padding_idx=0)
        self.rnn = kind(12, 8, batch_first=batch_first, bidirectional=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(self.embedding(x))
        return self.fc(output[:, -1] if self.rnn.batch_first else output[-1])


class PackedText(RecurrentText):
    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(text), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        output, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.fc(output[:, -1])


class AttentionText(nn.Module):
    """Takes at most ten tokens, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.position = nn.Parameter(torch.zeros(1, 10, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 4)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        return self.fc(self.encoder(x, src_key_padding_mask=mask).mean(1))


class LearntPositions(nn.Module):
    """The second table is smaller than the first, and than a usual sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 8), nn.Embedding(6, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.words(x) + self.places(torch.arange(x.shape[1]))).mean(1))


class UsersAndItems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(100, 8), nn.Embedding(5, 8)
        self.fc = nn.Linear(16, 1)

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        return self.fc(torch.cat([self.users(u), self.items(i)], -1)).squeeze(-1)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 8))
        self.fc = nn.Linear(1, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc((self.trunk(a) - self.trunk(b)).norm(dim=1, keepdim=True))


class PictureAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.table = nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16))
        self.fc = nn.Linear(24, 5)

    def both(self, picture: Tensor, table: Tensor) -> Tensor:
        return self.fc(torch.cat([self.picture(picture), self.table(table)], 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.both(first, second)


class TableAndPicture(PictureAndTable):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.both(second, first)


class OneDict(PictureAndTable):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.both(batch["seen"], batch["known"])


class AnyKeywords(PictureAndTable):
    def forward(self, **batch: Tensor) -> Tensor:  # type: ignore[override]
        return self.both(batch["seen"], batch["known"])


class AnyArguments(PictureAndTable):
    def forward(self, *batch: Tensor) -> Tensor:  # type: ignore[override]
        return self.both(*batch)


class OneList(PictureAndTable):
    def forward(self, batch: list[Tensor]) -> Tensor:  # type: ignore[override]
        picture, table = batch
        return self.both(picture, table)


class Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(1, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x) + self.time(t[:, None].float())[:, :, None, None]


class GraphConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.fc = nn.Linear(16, 8), nn.Linear(8, 7)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        lifted = self.lift(x)
        return self.fc(lifted.index_add(0, target, lifted[source]))


class EncodedPoints(nn.Module):
    """Makes 63 features out of 3 coordinates before its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.fc = nn.Linear(63, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        waves = [wave(2**i * x) for i in range(10) for wave in (torch.sin, torch.cos)]
        return self.fc(self.lift(torch.cat([x, *waves], -1)))


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.fc = nn.EmbeddingBag(100, 8), nn.Linear(8, 4)

    def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
        return self.fc(self.bag(text, offsets))


class BareWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.fc = (nn.Linear(n, m, dtype=torch.cfloat) for n, m in ((6, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lift(x)).abs()


class PatchedInstance(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(9, 4))
        self.forward = lambda a, b: self[0](a + b)  # type: ignore[method-assign]


class AuxiliaryNeedsMore(nn.Module):
    """Runs at any size in eval mode; its auxiliary head needs 240 pixels in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux = nn.Conv2d(3, 4, 3, stride=60), nn.Conv2d(4, 4, 5)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        output = self.fc(x.mean((2, 3)))
        return (output, self.aux(x)) if self.training else output


def audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 8, 80, 4), nn.BatchNorm1d(8), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 35),
    )  # fmt: skip


def transformer() -> nn.Module:
    with warnings.catch_warnings():  # its constructor prefers the batch first
        warnings.simplefilter("ignore")
        return nn.Transformer(16, 2, 1, 1, 32)


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(9, 8, 5), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8 * 62, 6)
    )  # fmt: skip


def cifar() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 10),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3, 2, 1, output_padding=1)
    )


def generator() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(100, 8, 4), nn.BatchNorm2d(8), nn.Tanh())


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14**3, 2))


ANY = None
# What comes out is asserted only where a user would be surprised by anything else.
SMALL: dict[str, tuple[Build, list[tuple[int, ...]] | None]] = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)), [(2, 20)]),
    "flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), [(2, 784)]),
    "digits": (lambda: Digits(320), [(2, 1, 28, 28)]),
    # At 224 pixels the view by 980 features makes 128 rows out of 2, without an error.
    "padded digits": (lambda: Digits(980, padding=2), [(2, 1, 28, 28)]),
    "cifar": (cifar, [(2, 3, 32, 32)]),
    "handmade vit": (HandmadeViT, [(2, 3, 56, 56)]),
    "head first": (HeadRegisteredFirst, [(2, 3, 224, 224)]),
    "lstm text": (lambda: RecurrentText(nn.LSTM, True), [(2, 16)]),
    "gru text, time first": (lambda: RecurrentText(nn.GRU, False), [(16, 2)]),
    "packed text": (lambda: PackedText(nn.LSTM, True), [(2, 16), (2,)]),
    "attention text": (AttentionText, [(2, 10), (2, 10)]),
    "learnt positions": (LearntPositions, ANY),
    "users and items": (UsersAndItems, ANY),
    "pair": (Pair, [(2, 3, 32, 32)] * 2),
    "picture and table": (PictureAndTable, [(2, 3, 224, 224), (2, 7)]),
    "table and picture": (TableAndPicture, [(2, 7), (2, 3, 224, 224)]),
    "dict": (OneDict, ANY),
    "keywords": (AnyKeywords, ANY),
    "arguments": (AnyArguments, ANY),
    "list": (OneList, ANY),
    "diffusion": (Diffusion, [(2, 3, 224, 224), (2,)]),
    "graph convolution": (GraphConvolution, [(2, 16), (2, 2)]),
    "encoded points": (EncodedPoints, [(2, 3)]),
    "bags": (Bags, ANY),
    "bare weight": (BareWeight, [(2, 12)]),
    "complex": (Complex, [(2, 6)]),
    "patched instance": (PatchedInstance, [(2, 9), (2, 9)]),
    "audio": (audio, [(2, 1, 16000)]),
    "series": (series, [(2, 9, 128)]),
    "autoencoder": (autoencoder, ANY),
    "generator": (generator, [(2, 100, 1, 1)]),
    "volume": (volume, [(2, 1, 16, 16, 16)]),
    "transformer": (transformer, [(16, 2, 16)] * 2),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(16, 2, 32), [(16, 2, 16)] * 2),
    "attention": (lambda: nn.MultiheadAttention(16, 2), [(16, 2, 16)] * 3),
    "attention of three widths": (
        lambda: nn.MultiheadAttention(16, 2, kdim=8, vdim=12, batch_first=True),
        [(2, 16, 16), (2, 16, 8), (2, 16, 12)],
    ),
    "lstm": (lambda: nn.LSTM(8, 4), [(16, 2, 8)]),
    "cell": (lambda: nn.GRUCell(8, 4), [(2, 8)]),
    "bilinear": (lambda: nn.Bilinear(5, 7, 3), [(2, 5), (2, 7)]),
    "layer norm": (lambda: nn.LayerNorm([3, 8, 8]), [(2, 3, 8, 8)]),
    "batch norm": (lambda: nn.BatchNorm1d(6), [(2, 6)]),
    "no parameters": (nn.Identity, ANY),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))),
        [(2, 5)],
    ),
    "needs more in train mode": (AuxiliaryNeedsMore, ANY),
}
