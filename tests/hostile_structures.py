"""Hostile models by structure: sharing, several heads, control flow, text, state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.hostile import Headed, hostile, mlp, random, sequences, tokens, vectors


@hostile({"stem": 8}, "`fc` is a feature layer and the head is called `stem`; classes = features")
class MisleadingNames(nn.Module):
    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(8, classes)
        self.fc, self.head, self.classifier = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(self.classifier(self.head(self.fc(x).relu()).relu()))


@hostile({"a": 5}, "one module under two names, and forward uses the second")
class SharedUnderTwoNames(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = mlp()
        self.a = self.b = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.trunk(x))


@hostile({"fc": 5}, "one head for two branches", outputs={"output[0]": 1, "output[1]": 1})
class SharedByTwoBranches(Headed):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(self.trunk(x)), self.fc(x.flip(-1).tanh())


@hostile(
    {"head": 2},
    "one head at three depths; classes = batch",
    outputs={"output[0]": 1, "output[1]": 1, "output[2]": 1},
)
class HeadAtThreeDepths(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.stages = nn.ModuleList([mlp() for _ in range(3)])
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(self.head(x))
        return found


@hostile(
    {"exits.0": 4, "exits.1": 4, "exits.2": 4},
    "three early exits, each with a head of its own",
    outputs={"output['early']": 1, "output['middle']": 1, "output['late']": 1},
)
class DeepSupervision(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stages = nn.ModuleList([mlp() for _ in range(3)])
        self.exits = nn.ModuleList([nn.Linear(8, classes) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, stage, leave in zip(
            ("early", "middle", "late"), self.stages, self.exits, strict=True
        ):
            x = stage(x)
            found[name] = leave(x)
        return found


@hostile({"heads.cls": 5}, "the head is chosen from a ModuleDict by key")
class HeadInModuleDict(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"cls": nn.Linear(8, classes), "neck": mlp()})

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["cls"](self.heads["neck"](x))


@hostile(
    {"members.0.fc": 5, "members.1.fc": 5, "members.2.fc": 5},
    "an ensemble: three heads, one output, the mean",
)
class EnsembleMean(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.members = nn.ModuleList([Headed(classes) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Tasks(nn.Module):
    """A shared trunk and a head for each task."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.trunk = mlp()
        self.tasks = nn.ModuleDict({f"task{i}": nn.Linear(8, n) for i, n in enumerate(sizes)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {name: head(x) for name, head in self.tasks.items()}


TASKS = {f"output['task{i}']": 1 for i in range(3)}


@hostile(
    {"tasks.task0": 2, "tasks.task1": 8, "tasks.task2": 5},
    "three tasks of different sizes: nobody can say which is meant",
    outputs=TASKS,
    replaceable=False,
)
def three_tasks_of_different_sizes() -> nn.Module:
    return Tasks(2, 8, 5)


@hostile(
    {f"tasks.task{i}": 4 for i in range(3)}, "three tasks of equal size: all change", outputs=TASKS
)
def three_tasks_of_equal_size(classes: int = 4) -> nn.Module:
    return Tasks(classes, classes, classes)


class TaskByName(Tasks):
    def forward(self, x: Tensor, task: str) -> Tensor:  # type: ignore[override]
        return self.tasks[task](self.trunk(x))


@hostile(
    {"tasks.task1": 5},
    "a hydra: the caller names the head, the others do not run",
    example=lambda: {"x": random(2, 8), "task": "task1"},
)
def hydra_by_argument(classes: int = 5) -> nn.Module:
    return TaskByName(3, classes, 4)


@hostile({"fc": 2}, "Siamese: two inputs share a trunk", example=vectors(count=2))
class Siamese(Headed):
    def __init__(self, classes: int = 2) -> None:
        super().__init__(classes)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc((self.trunk(left) - self.trunk(right)).abs())


@hostile({"fc": 5}, "the trunk runs under no_grad inside forward")
class NoGradTrunk(Headed):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.trunk(x)
        return self.fc(x)


@hostile({"fc": 5}, "the trunk runs in inference mode inside forward")
class InferenceModeTrunk(Headed):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            x = self.trunk(x)
        return self.fc(x.clone())


@hostile({"fc": 5}, "a branch that depends on a float value")
class FloatControlFlow(Headed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        if x.mean().item() > 0.1:
            x = x / x.mean()
        return self.fc(x)


@hostile({"fc": 5}, "a loop whose length depends on the tokens", example=tokens())
class IntegerControlFlow(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, classes)

    def forward(self, ids: Tensor) -> Tensor:
        longest = int((ids != 0).sum(1).max())
        x = self.embedding(ids[:, :longest]).mean(1)
        for _ in range(longest):
            x = self.mix(x).tanh()
        if (ids == 10).any():
            x = -x
        return self.fc(x)


@hostile(
    {"experts.0": 5, "experts.1": 5},
    "mixture of experts: rows go where the gate's argmax says, by boolean index",
    corroborated=True,
    follows=("num_classes",),
    candidates={"gate": 2},
)
class HardMixture(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, classes) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = x.new_zeros(x.shape[0], self.num_classes)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(x[chosen == number])
        return out


@hostile(
    {"experts.0": 5, "experts.1": 5, "experts.2": 5},
    "soft mixture: the gate is as near to the output as the experts, and makes no classes",
    corroborated=True,
    follows=("num_classes",),
    candidates={"gate": 3},
)
class SoftMixture(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Linear(8, classes) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.gate(x).softmax(-1).unsqueeze(-1) * answers).sum(1)


@hostile(
    {"fc": 5},
    "logits times a learned gate of one entry: the gate's axis is not the class axis",
    candidates={"gate": 1},
)
class GatedLogits(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.gate = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)) * self.gate(x).sigmoid()


@hostile(
    {"fc": 5},
    "data-dependent routing without a gate's values: rows are sorted, then put back",
    outputs={"output": 1},
)
class SortedRows(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        order = self.score(x)[:, 0].argsort()
        return self.fc(x[order])[order.argsort()]


class Recurrent(nn.Module):
    """Embedding, a recurrent layer, a linear head on the last state."""

    def __init__(self, kind: type[nn.RNNBase], classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.rnn = kind(8, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(ids))
        return self.out(states[:, -1])


@hostile({"out": 6}, "LSTM over tokens; classes = length", example=tokens())
def lstm_text(classes: int = 6) -> nn.Module:
    return Recurrent(nn.LSTM, classes)


@hostile({"out": 5}, "GRU over tokens", example=tokens())
def gru_text(classes: int = 5) -> nn.Module:
    return Recurrent(nn.GRU, classes)


@hostile({"out": 2}, "transformer over tokens with a padding mask", example=tokens())
class TransformerText(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, classes)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position
        return self.out(self.encoder(x, src_key_padding_mask=ids == 0)[:, 0])


@hostile({"fc": 5}, "attention pooling by a learned query before the head", example=sequences())
class AttentionPooling(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = self.attention(self.query.expand(x.shape[0], -1, -1), x, x)
        return self.fc(pooled[:, 0])


@hostile({"fc": 5}, "forward is replaced by a closure over the original bound method")
def monkeypatched_forward(classes: int = 5) -> nn.Module:
    model = Headed(classes)
    original = model.forward
    model.forward = lambda x: original(x * 2.0) + 1.0  # type: ignore[method-assign]
    return model


@hostile({"fc": 5}, "forward hooks change the output", outputs={"output['logits']": 1})
def hooks_change_the_output(classes: int = 5) -> nn.Module:
    model = Headed(classes)
    model.fc.register_forward_hook(lambda module, args, output: output * 2.0)
    model.register_forward_hook(lambda module, args, output: {"logits": output})
    return model


@hostile({"head": 5}, "the forward runs a plain list that holds the head too")
class AlsoInPlainList(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk, self.head = mlp(), nn.Linear(8, classes)
        self.layers = [self.trunk, self.head]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@hostile({"fc": 5}, "plain tensors hung on a module take part in the forward")
class PlainTensorAttribute(Headed):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.shift = torch.randn(8)
        self.trunk.scale = torch.rand(8) + 0.5  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk((x + self.shift) * self.trunk.scale))


@hostile({"fc": 5}, "integer buffers index features and count the steps in train mode")
class IntegerState(Headed):
    order: Tensor
    steps: Tensor

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.register_buffer("order", torch.randperm(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
        return self.fc(self.trunk(x[:, self.order]))


@hostile({"fc": 5}, "the first forward caches a tensor that it computes", example=sequences())
class CachedTensor(Headed):
    cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None or self.cache.shape[0] != x.shape[1]:
            places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
            self.cache = torch.outer(places, torch.ones(8, device=x.device)).sin()
        return self.fc(self.trunk(x + self.cache).mean(1))


@hostile({"fc": 5}, "nothing is trainable, the head included")
def frozen_head(classes: int = 5) -> nn.Module:
    return Headed(classes).requires_grad_(False)
