"""More hostile models, written after the mechanism: they hold it to the kind, not to the case."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Categorical

from tests.hostile import (
    Build,
    Headed,
    Hostile,
    Pair,
    conv,
    images,
    mlp,
    named,
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
    {"bias": 4},
    "ordinal regression: one score, and a learned threshold for each rank but one",
)
class OrdinalRanks(Headed):
    def __init__(self, classes: int = 4) -> None:
        super().__init__(1)
        self.bias = nn.Parameter(torch.arange(classes).float())

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(self.trunk(x)) + self.bias).sigmoid()


@unseen(
    {"groups.0": 3, "groups.1": 4},
    "hierarchical softmax: classes within groups times the group's probability",
    candidates={"which": 2},
    replaceable=False,
)
class HierarchicalSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.which = mlp(), nn.Linear(8, 2)
        self.groups = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        which = self.which(x).log_softmax(-1)
        parts = [
            group(x).log_softmax(-1) + which[:, place : place + 1]
            for place, group in enumerate(self.groups)
        ]
        return torch.cat(parts, 1)


class AngularMargin(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(x), F.normalize(self.weight))
        sine = (1.0 - cosine.pow(2)).clamp(1e-6, 1).sqrt()
        turned = cosine * math.cos(0.5) - sine * math.sin(0.5)
        hot = torch.zeros_like(cosine).scatter_(1, label.view(-1, 1), 1)
        return 30.0 * (hot * turned + (1.0 - hot) * cosine)


@unseen(
    {"margin": 5},
    "metric learning: an angular margin on the true class's cosine",
    example=lambda: (random(2, 8), torch.tensor([0, 3])),
)
class MetricLearning(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.margin = mlp(), AngularMargin(8, classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.margin(self.trunk(x), label)


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


class HyperHead(nn.Module):
    """A layer whose weight another layer makes from an embedding of each class."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(classes, 4))
        self.make = nn.Linear(4, features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.make(self.codes))


@unseen({"head": 5}, "the head's weight is made from class codes", replaceable=False)
def hyper_network() -> nn.Module:
    return Pair(mlp(), HyperHead(8, 5))


class LowRankLinear(nn.Linear):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.a = nn.Parameter(torch.randn(2, features))
        self.b = nn.Parameter(torch.randn(classes, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.b @ self.a, self.bias)


@unseen({"fc": 5}, "a low-rank update is added to the weight itself")
class MergedAdapter(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.fc = LowRankLinear(8, classes)


def graph_example() -> Any:
    return random(6, 8), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])


class GraphConvolution(nn.Module):
    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.lin = nn.Linear(features, out, bias=False)
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.lin(x)
        sent = x.index_select(0, edges[0])
        to = edges[1].unsqueeze(-1).expand_as(sent)
        return torch.zeros_like(x).scatter_add(0, to, sent) + self.bias


@unseen(
    {"two.lin": 6},
    "a graph network: rows are summed along edges behind the head; classes = nodes",
    example=graph_example,
    follows=("two.bias",),
)
class GraphNetwork(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.one, self.two = GraphConvolution(8, 8), GraphConvolution(8, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.two(self.one(x, edges).relu(), edges)


@unseen(
    {"fc": 5},
    "messages are added into a new tensor, in place, behind the head",
    example=graph_example,
)
class AddedInPlace(Headed):
    def forward(self, x: Tensor, edges: Tensor) -> Tensor:  # type: ignore[override]
        x = self.fc(self.trunk(x))
        out = torch.zeros(x.shape[0], x.shape[1], device=x.device)
        out.index_add_(0, edges[1], x[edges[0]])
        return out + x


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
    replaceable=False,
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


@unseen({"fc": 5}, "logits and the free energy of them", outputs={"output[0]": 1})
class EnergyBeside(Headed):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.fc(self.trunk(x))
        return logits, -logits.logsumexp(-1)


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


class Temperature(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.temperature = model, nn.Parameter(torch.ones(1) * 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.temperature


@unseen({"model.fc": 5}, "a calibrated model: its logits over one temperature")
def temperature_scaling(classes: int = 5) -> nn.Module:
    return Temperature(Headed(classes))


@unseen({"calibrate": 5}, "a square layer behind the first layer of classes makes the last word")
class CalibratedByMatrix(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.model, self.calibrate = Headed(5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.calibrate(self.model(x))


@unseen({"fc": 8}, "Sequential with Softmax at its end; classes = features")
def softmax_at_the_end(classes: int = 8) -> nn.Module:
    return named(trunk=mlp(), fc=nn.Linear(8, classes), prob=nn.Softmax(dim=-1))


@unseen(
    {"fc": 8},
    "LayerNorm over the classes; classes = features",
    follows=("norm.weight", "norm.bias"),
)
def layer_norm_behind(classes: int = 8) -> nn.Module:
    return named(
        first=nn.LayerNorm(8), trunk=mlp(), fc=nn.Linear(8, classes), norm=nn.LayerNorm(classes)
    )


@unseen(
    {"head": 8},
    "GroupNorm over the classes of a convolution, then an activation for each class",
    example=images(),
    follows=("norm.weight", "norm.bias", "act.weight"),
)
def group_norm_behind(classes: int = 8) -> nn.Module:
    return named(
        trunk=conv(),
        head=nn.Conv2d(8, classes, 1),
        norm=nn.GroupNorm(1, classes),
        act=nn.PReLU(classes),
    )


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
    {"fc": 5},
    "a distribution comes out, with its logits",
    outputs=dict.fromkeys(("output.logits", "output._param"), 1),
)
class DistributionOut(Headed):
    def forward(self, x: Tensor) -> Categorical:
        return Categorical(logits=self.fc(self.trunk(x)), validate_args=False)


@unseen({"fc": 5}, "classes that are masked by a boolean buffer", follows=("allowed",))
class MaskedClasses(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.register_buffer("allowed", torch.arange(classes) < 3)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(self.trunk(x))
        return torch.where(self.allowed, logits, logits.new_tensor(-1e4))


@unseen(
    {"fc": 5},
    "wide and deep: a lookup of classes is added to the logits",
    example=lambda: (random(2, 8), tokens()()),
    candidates={"wide": 5},
    replaceable=False,
)
class WideAndDeep(Headed):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Embedding(11, 5)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(self.trunk(x)) + self.wide(ids).sum(1)


@unseen(
    {"linear": 1, "deep.1": 1},
    "a factorisation machine: linear, pairwise and deep parts make one logit",
)
class FactorisationMachine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)
        self.factors = nn.Parameter(torch.randn(8, 4))
        self.deep = nn.Sequential(mlp(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        pairs = ((x @ self.factors).pow(2) - x.pow(2) @ self.factors.pow(2)).sum(1, keepdim=True)
        return self.linear(x) + 0.5 * pairs + self.deep(x)


@unseen({"leaves": 5}, "a soft decision tree: its leaves hold a distribution over classes")
class SoftTree(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.split = nn.Linear(8, 3)
        self.leaves = nn.Parameter(torch.randn(4, classes))

    def forward(self, x: Tensor) -> Tensor:
        p = self.split(x).sigmoid()
        left, right = p[:, :1], 1 - p[:, :1]
        paths = torch.cat(
            [left * p[:, 1:2], left * (1 - p[:, 1:2]), right * p[:, 2:], right * (1 - p[:, 2:])], 1
        )
        return paths @ self.leaves.softmax(-1)


@unseen(
    {"decode": 5},
    "a mixture of softmaxes: one head for each part of a split vector",
    candidates={"prior": 2},
)
class MixtureOfSoftmaxes(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.latent, self.prior = nn.Linear(8, 16), nn.Linear(8, 2)
        self.decode = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.decode(self.latent(x).tanh().view(-1, 8)).softmax(-1)
        parts = parts.view(x.shape[0], 2, -1)
        return (parts * self.prior(x).softmax(-1).unsqueeze(-1)).sum(1)


@unseen(
    {"mean": 5},
    "discriminant analysis: a distance to each mean under one learned precision",
    candidates={"precision": 8},
)
class Discriminant(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = mlp()
        self.mean = nn.Parameter(torch.randn(classes, 8))
        self.precision = nn.Parameter(torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        difference = self.trunk(x).unsqueeze(1) - self.mean
        return -(difference @ self.precision * difference).sum(-1)


@unseen(
    {},
    "few shots: prototypes are means of a support set that comes in",
    example=lambda: (random(2, 8), random(6, 8).view(2, 3, 8)),
    candidates={"trunk.0": 8},
    replaceable=False,
)
class FewShots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp()

    def forward(self, x: Tensor, support: Tensor) -> Tensor:
        return -torch.cdist(self.trunk(x), self.trunk(support).mean(1))


@unseen(
    {},
    "only the winning label comes out",
    candidates={"fc": 5},
    replaceable=False,
)
class LabelOnly(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).argmax(-1)


@unseen(
    {},
    "zero-shot: image features against text features in a buffer",
    candidates={"project": 6},
    replaceable=False,
)
class ZeroShot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.project = mlp(), nn.Linear(8, 6)
        self.register_buffer("texts", torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return 100.0 * F.normalize(self.project(self.trunk(x))) @ self.texts.t()


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


@unseen(
    {"expand": 5},
    "logits by linear attention of class keys over pooled features",
)
class ClassKeys(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.query = mlp(), nn.Linear(8, 6)
        self.expand = nn.Embedding(classes, 6)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(self.trunk(x)).unsqueeze(1)
        keys = self.expand.weight.expand(x.shape[0], -1, -1)
        return (query @ keys.transpose(1, 2)).squeeze(1) / 6**0.5


@unseen(
    {"fc": 5},
    "features that a frozen random projection made, in double precision inside",
    example=vectors(),
)
class MixedPrecision(Headed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x).double() @ torch.ones(8, 8, dtype=torch.float64, device=x.device)
        return self.fc(x.float()).float().clamp(-50, 50)


@unseen({"fc": 5}, "classes sorted in another order by an index in a buffer", follows=("order",))
class Reordered(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.register_buffer("order", torch.arange(classes).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x))[:, self.order]


@unseen({"fc": 5}, "standardised logits: mean and deviation over classes", example=vectors())
class Standardised(Headed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.trunk(x))
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)


@unseen({"fc": 5}, "logits cumulated over classes, then differences taken", follows=())
class Cumulated(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).softmax(-1).cumsum(-1)


@unseen({"fc": 5}, "dense labels of a padded image, cropped back", example=images(size=6))
class PaddedAndCropped(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.fc = conv(), nn.Conv2d(8, classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.trunk(F.pad(x, (2, 2, 2, 2), mode="reflect")))
        return x[..., 1:-1, 1:-1]
