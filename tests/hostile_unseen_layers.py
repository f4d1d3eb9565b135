"""More hostile models by the layer the head is and what lies behind it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Categorical

from tests.hostile import Headed, Pair, conv, images, mlp, named, random, tokens, vectors
from tests.hostile_unseen import UNSEEN, unseen

# Whoever imports it from here has the models of both files.
__all__ = ["UNSEEN"]


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


@unseen({"fc": 5}, "logits and the free energy of them", outputs={"output[0]": 1})
class EnergyBeside(Headed):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.fc(self.trunk(x))
        return logits, -logits.logsumexp(-1)


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


@unseen(
    {"fc": 5},
    "a distribution comes out, with its logits",
    outputs=dict.fromkeys(("output.logits", "output._param"), 1),
)
class DistributionOut(Headed):
    def forward(self, x: Tensor) -> Categorical:
        return Categorical(logits=self.fc(self.trunk(x)), validate_args=False)


@unseen(
    {"fc": 5},
    "classes that are masked by a boolean buffer: what a new class gets is not said",
    follows=("allowed",),
    replaceable=False,
)
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
    {"texts": 5},
    "zero-shot: image features against text features in a buffer",
)
class ZeroShot(nn.Module):
    texts: Tensor

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.project = mlp(), nn.Linear(8, 6)
        self.register_buffer("texts", torch.randn(classes, 6))

    def forward(self, x: Tensor) -> Tensor:
        return 100.0 * F.normalize(self.project(self.trunk(x))) @ self.texts.t()


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


@unseen(
    {"fc": 5},
    "classes sorted in another order by an index in a buffer",
    follows=("order",),
    replaceable=False,
)
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
