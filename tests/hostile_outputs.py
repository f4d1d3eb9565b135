"""Hostile models by what lies behind the head: buffers, tensors written to, containers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.hostile import Headed, Pair, conv, hostile, images, mlp, random, sequences, vectors
from tests.hostile_facts import Labels


@hostile({"fc": 5}, "log_softmax behind the head")
class LogSoftmaxBehind(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.fc(self.trunk(x)), -1)


@hostile({"fc": 2}, "softmax over dim 0 of the transposed logits, and back; classes = batch")
class SoftmaxAcrossTranspose(Headed):
    def __init__(self, classes: int = 2) -> None:
        super().__init__(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).t().softmax(0).t()


@hostile({"fc": 5}, "bias and temperature per class behind the head", follows=("bias", "scale"))
class BiasAndTemperature(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.bias = nn.Parameter(torch.randn(classes))
        self.scale = nn.Parameter(torch.rand(1, classes) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(self.trunk(x)) + self.bias) / self.scale


@hostile(
    {"fc": 8},
    "BatchNorm1d over classes behind the head, and one over features before; classes = features",
    follows=("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
)
class BatchNormBehind(Headed):
    def __init__(self, classes: int = 8) -> None:
        super().__init__(classes)
        self.before, self.norm = nn.BatchNorm1d(8), nn.BatchNorm1d(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(self.before(self.trunk(x))))


@hostile({"fc": 8}, "a log prior per class in a buffer; classes = features", follows=("log_prior",))
class LogPrior(Headed):
    log_prior: Tensor
    mean: Tensor

    def __init__(self, classes: int = 8) -> None:
        super().__init__(classes)
        self.register_buffer("log_prior", torch.randn(classes))
        self.register_buffer("mean", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x - self.mean)) + self.log_prior


@hostile(
    {"fc": 5},
    "probabilities go through a class-by-class matrix in a buffer, which nobody can extend",
    follows=("transition",),
    replaceable=False,
)
class LabelNoise(Headed):
    transition: Tensor

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.register_buffer("transition", torch.eye(classes) * 0.9 + 0.1 / classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).softmax(-1) @ self.transition


@hostile(
    {"fc": 5},
    "graph convolution: a matrix product without parameters behind the head",
    example=lambda: (random(2, 6, 8), random(2, 6, 6)),
    outputs={"output": 2},
)
class AdjacencyBehind(Headed):
    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:  # type: ignore[override]
        return adjacency @ self.fc(self.trunk(x))


@hostile(
    {"fc": 5},
    "logits written into a preallocated tensor of num_classes columns",
    corroborated=True,
    follows=("num_classes",),
)
class PreallocatedWhole(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.num_classes = classes

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], self.num_classes)
        out[:] = self.fc(self.trunk(x))
        return out


@hostile(
    {"fc": 5},
    "logits of each step written into a slice of one tensor; classes = steps",
    example=sequences(),
    outputs={"output": 2},
)
class PreallocatedSlices(Headed):
    def forward(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], x.shape[1], self.fc.out_features)
        for step in range(x.shape[1]):
            out[:, step] = self.fc(self.trunk(x[:, step]))
        return out


@hostile(
    {"fc": 5}, "a preallocated tensor whose width stands in the code as a number", replaceable=False
)
class PreallocatedConstant(Headed):
    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 5)
        out.copy_(self.fc(self.trunk(x)))
        return out


class Parts(nn.Module):
    """Known and new classes from two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.known, self.new = mlp(), nn.Linear(8, 3), nn.Linear(8, 4)


@hostile({"known": 3, "new": 4}, "two heads fill one tensor, 3 and 4 columns", replaceable=False)
class TwoHeadsOneBuffer(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x, out = self.trunk(x), torch.empty(x.shape[0], 7)
        out[:, :3] = self.known(x)
        out[:, 3:] = self.new(x)
        return out


@hostile({"known": 3, "new": 4}, "two heads side by side, 3 and 4 columns", replaceable=False)
class ConcatenatedHeads(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return torch.cat([self.known(x), self.new(x)], 1)


@hostile(
    {f"heads.{i}": 1 for i in range(4)}, "one layer of one output for each class", replaceable=False
)
class OneVersusRest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = mlp(), nn.ModuleList([nn.Linear(8, 1) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return torch.cat([head(x) for head in self.heads], 1)


@hostile({"fc": 1}, "one output: two classes in a single logit")
class SingleLogit(Headed):
    def __init__(self, classes: int = 1) -> None:
        super().__init__(classes)


@hostile({"fc": 2}, "the class axis comes first; classes = batch", outputs={"output": 0})
class ClassAxisFirst(Headed):
    def __init__(self, classes: int = 2) -> None:
        super().__init__(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).t()


@hostile(
    {"fc": 5},
    "log-probabilities by time, batch and class, as CTC wants them; classes = length",
    example=sequences(),
    outputs={"output": 2},
)
class TimeFirst(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).permute(1, 0, 2).log_softmax(-1)


@hostile({"fc": 5}, "logits of each step, averaged over time", example=sequences())
class AveragedOverTime(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)).mean(1)


@hostile(
    {"cell_out": 5},
    "a decoder: the head runs at every step of a loop and the state goes on",
    outputs={"output": 2},
)
class HeadInLoop(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.cell, self.cell_out = nn.GRUCell(8, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        state, steps = x, []
        for _ in range(3):
            state = self.cell(x, state)
            steps.append(self.cell_out(state))
        return torch.stack(steps, 1)


@hostile(
    {"low": 8, "high": 8},
    "two heads at two resolutions are added up; classes = features = size",
    example=images(),
)
class SummedResolutions(nn.Module):
    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.fine, self.coarse = conv(), conv(8, 8)
        self.high, self.low = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        low = self.low(F.max_pool2d(self.coarse(fine), 2))
        return self.high(fine) + F.interpolate(low, scale_factor=2.0)


@hostile(
    {"fc": 5, "fc_dist": 5},
    "distilled: two heads, averaged in eval mode and returned as a pair in train mode",
    train_outputs={"output[0]": 1, "output[1]": 1},
)
class Distilled(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.fc_dist = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        pair = self.fc(x), self.fc_dist(x)
        return pair if self.training else (pair[0] + pair[1]) / 2


@hostile(
    {"coarse": 3, "fine": 6},
    "coarse classes feed the fine ones: both are heads",
    outputs={"output['coarse']": 1, "output['fine']": 1},
    replaceable=False,
)
class CoarseToFine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.coarse, self.fine = mlp(), nn.Linear(8, 3), nn.Linear(11, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        coarse = self.coarse(x)
        return {"coarse": coarse, "fine": self.fine(torch.cat([x, coarse.softmax(-1)], 1))}


class Logits(NamedTuple):
    logits: Tensor
    aux_logits: Tensor | None = None


@dataclass
class Scores:
    logits: Tensor
    loss: Tensor | None = None
    count: int = 0


@dataclass
class Answer(OrderedDict[str, Any]):
    """What ``ModelOutput`` is: a dataclass and a dict at once, without the fields that are None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None:
                self[each.name] = value


@hostile({"fc": 5}, "a dataclass comes out", outputs={"output.logits": 1})
class DataclassOutput(Headed):
    def forward(self, x: Tensor) -> Scores:
        return Scores(self.fc(self.trunk(x)), count=3)


@hostile({"fc": 5}, "a named tuple comes out, one field None", outputs={"output.logits": 1})
class NamedTupleOutput(Headed):
    def forward(self, x: Tensor) -> Logits:
        return Logits(self.fc(self.trunk(x)))


@hostile(
    {"fc": 5},
    "an ordered dict with attributes; config.num_labels follows from id2label",
    outputs={"output.logits": 1},
    corroborated=True,
    follows=("config.num_labels", "config.id2label", "config.label2id"),
)
class ModelOutputLike(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.config = Labels(classes)

    def forward(self, x: Tensor) -> Answer:
        x = self.trunk(x)
        return Answer(logits=self.fc(x))


@hostile({"fc": 5}, "logits deep in lists, tuples and dicts", outputs={"output['deep'][1][0]": 1})
class NestedOutput(Headed):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"name": "net", "deep": ("x", [self.fc(self.trunk(x)), None]), "size": x.shape[0]}


@hostile(
    {"fc": 5},
    "an auxiliary head that runs in train mode only, as in GoogLeNet",
    train_heads={"aux.head": 5},
    train_outputs={"output.logits": 1, "output.aux_logits": 1},
)
class AuxiliaryInTrainMode(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.stem, self.aux = mlp(), Pair(mlp(), nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        logits = self.fc(self.trunk(x))
        return Logits(logits, self.aux(x)) if self.training else logits


@hostile(
    {"head": 8, "aux": 8},
    "segmentation with an auxiliary output in a dict; classes = features = size",
    example=images(),
    outputs={"output['out']": 1, "output['aux']": 1},
)
class DictWithAuxiliary(nn.Module):
    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.first, self.second = conv(), conv(8, 8)
        self.head, self.aux = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(x)
        return OrderedDict(out=self.head(self.second(first)), aux=self.aux(first))


@hostile(
    {"fc": 5},
    "the winning label and its score beside the logits",
    outputs={"output['logits']": 1},
)
class LabelsBesideLogits(Headed):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.fc(self.trunk(x))
        score, label = logits.softmax(-1).max(-1)
        return {"label": label, "score": score, "logits": logits}


@hostile(
    {"fc": 5},
    "features beside the logits: num_classes tells them apart",
    outputs={"output[1]": 1},
    corroborated=True,
    follows=("num_classes",),
    candidates={"trunk.0": 8},
)
class FeaturesBesideLogits(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.num_classes = classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return x, self.fc(x)


@hostile(
    {"fc": 5},
    "features beside the logits and no attribute that tells them apart",
    outputs={"output[1]": 1},
    candidates={"trunk": 16},
    replaceable=False,
)
class FeaturesBesideLogitsUntold(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.fc = nn.Linear(8, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return x, self.fc(x.relu())


@hostile(
    {"fc": 2},
    "keys and values beside the logits: as many heads of attention as classes",
    outputs={"output['logits']": 1},
    example=sequences(),
    corroborated=True,
    follows=("num_classes",),
)
class KeysBesideLogits(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.num_classes = classes
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        query, key, value = (
            layer(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        logits = self.fc(mixed.transpose(1, 2).flatten(2).mean(1))
        return {"logits": logits, "key": key, "last": value[:, :, -1:]}


@hostile(
    {"fc": 5},
    "two inputs, the second one optional and given",
    example=lambda: dict(zip(("x", "extra"), vectors(count=2)(), strict=True)),
)
class OptionalInput(Headed):
    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        return self.fc(self.trunk(x if extra is None else x + extra))
