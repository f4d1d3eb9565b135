"""More hostile models, written after the mechanism: they hold it to the kind, not to the case."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.hostile import (
    Build,
    Headed,
    Hostile,
    conv,
    images,
    mlp,
    random,
    sequences,
    tokens,
    vectors,
)

UNSEEN: dict[str, Hostile] = {}


def unseen(
    heads: Mapping[str, int],
    note: str,
    *,
    example: Callable[[], Any] | None = None,
    outputs: Mapping[str, int] | None = None,
    corroborated: bool = False,
    **truth: Any,
) -> Callable[[Build], Build]:
    """Register a model here, as ``tests.hostile.hostile`` does there."""

    def register(build: Build) -> Build:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", build.__name__).lower()
        paths = ({"output": 1} if heads else {}) if outputs is None else outputs
        UNSEEN[name] = Hostile(
            name, build, example or vectors(), heads, corroborated, paths, note=note, **truth
        )
        return build

    return register


@unseen({"out": 8}, "a U-Net: skips join at two scales; classes = features", example=images())
class UNet(nn.Module):
    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(), conv(8, 8), conv(8, 8)
        self.up_two, self.up_one = (nn.ConvTranspose2d(8, 8, 2, stride=2) for _ in range(2))
        self.join_two, self.join_one = conv(16, 8), conv(16, 8)
        self.out = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        x = self.up_two(self.three(F.max_pool2d(two, 2)))
        x = self.up_one(self.join_two(torch.cat([x, two], 1)))
        return self.out(self.join_one(torch.cat([x, one], 1)))


@unseen(
    {"head": 5},
    "a pyramid: one convolution head on every level",
    example=images(),
    outputs={f"output[{level}]": 1 for level in range(3)},
)
class SharedOverPyramid(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = conv()
        self.laterals = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(3)])
        self.head = nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.stem(x)]
        for _ in range(2):
            levels.append(F.max_pool2d(levels[-1], 2))
        top = self.laterals[2](levels[2])
        found = [self.head(top)]
        for lateral, level in zip(self.laterals[:2][::-1], levels[:2][::-1], strict=True):
            top = lateral(level) + F.interpolate(top, scale_factor=2.0)
            found.append(self.head(top))
        return found


@unseen(
    {"fuse": 5},
    "heads at three scales are resized, joined and fused by a convolution, as in HED",
    example=images(),
    outputs={"output": 1},
)
class FusedSideOutputs(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 8), conv(8, 8), conv(8, 8)])
        self.sides = nn.ModuleList([nn.Conv2d(8, 2, 1) for _ in range(3)])
        self.fuse = nn.Conv2d(6, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, sides = x.shape[-2:], []
        for stage, side in zip(self.stages, self.sides, strict=True):
            x = F.max_pool2d(stage(x), 2)
            sides.append(F.interpolate(side(x), size=size, mode="bilinear"))
        return self.fuse(torch.cat(sides, 1))


@unseen(
    {"head": 5},
    "atrous branches, a projection, a head, bilinear resizing; a dict, as in DeepLab",
    example=images(),
    outputs={"output['out']": 1},
)
class AtrousPyramid(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = conv()
        self.branches = nn.ModuleList(
            [nn.Conv2d(8, 4, 3, padding=rate, dilation=rate) for rate in (1, 2)]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1))
        self.project, self.head = conv(12, 8), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        x = F.max_pool2d(self.trunk(x), 2)
        wide = F.interpolate(self.pooled(x), size=x.shape[-2:], mode="bilinear")
        x = self.head(self.project(torch.cat([*(b(x) for b in self.branches), wide], 1)))
        return {"out": F.interpolate(x, size=size, mode="bilinear")}


@unseen(
    {"out": 6},
    "log-probabilities of a convolution over time, as (time, batch, class); classes = length",
    example=sequences(length=6),
    outputs={"output": 2},
)
class ConvolutionForCTC(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.mix, self.out = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(self.mix(x.transpose(1, 2)).relu())
        return x.permute(2, 0, 1).log_softmax(-1)


@unseen(
    {"head.1": 5, "head_dist.1": 5},
    "normed and distilled heads, averaged in eval mode, a pair in train mode",
    train_outputs={"output[0]": 1, "output[1]": 1},
)
class NormedDistilled(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = mlp()
        self.head, self.head_dist = (
            nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, classes)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        pair = self.head(x), self.head_dist(x)
        return pair if self.training else (pair[0] + pair[1]) / 2


@unseen({"fc": 5}, "points: a layer for each, the largest over them, a head", example=sequences())
class PointSet(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x).max(1).values)


@unseen(
    {"fc": 5},
    "an image and a question, two towers multiplied",
    example=lambda: (images()(), tokens()()),
)
class VisualQuestion(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.see, self.read = conv(), nn.Embedding(11, 8)
        self.rnn, self.fc = nn.GRU(8, 8, batch_first=True), nn.Linear(8, classes)

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        _, state = self.rnn(self.read(question))
        return self.fc(self.see(image).mean((2, 3)) * state[-1])


@unseen(
    {"classes": 6},
    "set prediction: classes and boxes of learned queries; classes = queries",
    example=sequences(),
    outputs={"output['logits']": 2},
    candidates={"boxes.2": 4},
    replaceable=False,
)
class SetPrediction(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.queries = nn.Embedding(6, 8)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.classes = nn.Linear(8, classes)
        self.boxes = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Sigmoid())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.decoder(self.queries.weight.expand(x.shape[0], -1, -1), x)
        return {"logits": self.classes(x), "boxes": self.boxes(x)}


@unseen(
    {"out": 8},
    "a decoder reads back its own winning class; classes = features",
    example=sequences(),
    outputs={"output": 2},
)
class GreedyDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(8, 8), nn.GRUCell(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = x.mean(1)
        word = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        steps = []
        for _ in range(3):
            state = self.cell(self.words(word), state)
            steps.append(self.out(state))
            word = steps[-1].argmax(-1)
        return torch.stack(steps, 1)


@unseen(
    {"fc": 5},
    "a variational classifier: logits beside reconstruction, mean and variance",
    outputs={"output[0]": 1},
    corroborated=True,
    follows=("num_classes",),
    candidates={"decoder": 8, "mean": 4, "variance": 4},
)
class VariationalClassifier(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.trunk, self.mean, self.variance = mlp(), nn.Linear(8, 4), nn.Linear(8, 4)
        self.decoder, self.fc = nn.Linear(4, 8), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.trunk(x)
        mean, variance = self.mean(x), self.variance(x)
        code = mean + torch.randn_like(mean) * (variance / 2).exp()
        return self.fc(code), self.decoder(code), mean, variance


@unseen(
    {},
    "a Siamese distance: one number for each pair, and no class",
    example=vectors(count=2),
    candidates={"embed": 6},
    replaceable=False,
)
class PairDistance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.embed = mlp(), nn.Linear(8, 6)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.pairwise_distance(self.embed(self.trunk(left)), self.embed(self.trunk(right)))


@unseen({"head": 8}, "flips are averaged: one head twice behind one output", example=images())
class FlippedAndAveraged(nn.Module):
    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.trunk, self.head = conv(), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        straight = self.head(self.trunk(x))
        return (straight + self.head(self.trunk(x.flip(-1))).flip(-1)) / 2


@unseen({"fc": 5}, "ten crops: logits of (batch * crops), then the mean", example=sequences())
class CropsAveraged(Headed):
    def forward(self, x: Tensor) -> Tensor:
        batch, crops, _ = x.shape
        return self.fc(self.trunk(x.flatten(0, 1))).view(batch, crops, -1).mean(1)


@unseen({"head": 5}, "convolution, largest over space, squeezed", example=images())
class LargestOverSpace(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.head = conv(), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(self.head(self.trunk(x)), 1).squeeze(-1).squeeze(-1)


@unseen({"head": 5}, "channels last: the head is a Linear on (batch, h, w, c)", example=images())
class ChannelsLast(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.head = conv(), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.trunk(x).permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2).contiguous()


@unseen(
    {},
    "self-supervision: a projection and a prediction of it, and no class",
    outputs={},
    candidates={"projector.2": 8, "predictor.2": 8},
    replaceable=False,
)
class SelfSupervised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp()
        self.projector = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.predictor = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.trunk(x))
        return self.predictor(z), z.detach()


@unseen(
    {"heads.fc": 5},
    "sub-networks run under vmap over stacked members' features",
    example=sequences(),
    outputs={"output": 2},
)
class MappedHead(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.heads = Headed(classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.heads)(x)


@unseen(
    {"fc": 5},
    "logits of valid tokens only: a boolean index, and back into place",
    example=tokens(),
    outputs={"output": 2},
)
class PackedTokens(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(11, 8), nn.Linear(8, classes)

    def forward(self, ids: Tensor) -> Tensor:
        valid = ids != 0
        logits = self.fc(self.embedding(ids)[valid].relu())
        out = logits.new_zeros(*ids.shape, logits.shape[-1])
        out[valid] = logits
        return out


@unseen(
    {"fc": 5},
    "the classifier of a recurrent net over packed sequences",
    example=lambda: (random(2, 5, 8), torch.tensor([5, 3])),
    outputs={"output": 2},
)
class PackedSequence(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        states, _ = self.rnn(packed)
        return self.fc(nn.utils.rnn.pad_packed_sequence(states, batch_first=True)[0])


@unseen({"fc": 5}, "dense labels of a padded image, cropped back", example=images(size=6))
class PaddedAndCropped(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.fc = conv(), nn.Conv2d(8, classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.trunk(F.pad(x, (2, 2, 2, 2), mode="reflect")))
        return x[..., 1:-1, 1:-1]
