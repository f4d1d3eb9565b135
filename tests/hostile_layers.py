"""Hostile models by the layer that the head is: convolutions, norms, bare weights, distances."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils.checkpoint import checkpoint

from tests.hostile import (
    Headed,
    Pair,
    conv,
    hostile,
    images,
    mlp,
    named,
    random,
    sequences,
    tokens,
    vectors,
)


def _quiet(wrap: Callable[[nn.Module], nn.Module], layer: nn.Module) -> nn.Module:
    # The old-style norms are deprecated, and are what older models still carry.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrap(layer)


def _with_head(classes: int, change: Callable[[nn.Module], Any]) -> nn.Module:
    model = Headed(classes)
    change(model.fc)
    return model


@hostile({"fc": 5}, "old-style weight_norm: a pre-hook makes the weight from g and v")
def weight_norm_old(classes: int = 5) -> nn.Module:
    return _with_head(classes, lambda fc: _quiet(old_weight_norm, fc))


@hostile({"fc": 5}, "new-style weight_norm: the weight is a parametrization")
def weight_norm_new(classes: int = 5) -> nn.Module:
    return _with_head(classes, parametrizations.weight_norm)


@hostile({"fc": 5}, "old-style spectral_norm: a pre-hook, and buffers that move in train mode")
def spectral_norm_old(classes: int = 5) -> nn.Module:
    return _with_head(classes, lambda fc: _quiet(old_spectral_norm, fc))


@hostile({"fc": 5}, "new-style spectral_norm: a parametrization with buffers of its own")
def spectral_norm_new(classes: int = 5) -> nn.Module:
    return _with_head(classes, parametrizations.spectral_norm)


@hostile({"fc": 5}, "a pruned head: weight = weight_orig * weight_mask in a pre-hook")
def pruned_head(classes: int = 5) -> nn.Module:
    return _with_head(classes, lambda fc: prune.l1_unstructured(fc, "weight", 0.5))


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(0, keepdim=True)


@hostile({"fc": 8}, "a user's own parametrization of the weight; classes = features")
def own_parametrization(classes: int = 8) -> nn.Module:
    return _with_head(
        classes, lambda fc: parametrize.register_parametrization(fc, "weight", Symmetric())
    )


class MyLinear(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2.0


@hostile({"fc": 5}, "the head is of a subclass of Linear with another forward")
def subclass_of_linear(classes: int = 5) -> nn.Module:
    model = Headed(classes)
    model.fc = MyLinear(8, classes)
    return model


@hostile({"head.3": 5}, "a head of two layers: the last one makes the classes")
def deep_head(classes: int = 5) -> nn.Module:
    head = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.0), nn.Linear(6, classes))
    return Pair(mlp(), head)


class LowRank(nn.Module):
    """A frozen linear layer and a trainable low-rank one beside it."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.base = nn.Linear(features, classes).requires_grad_(False)
        self.down = nn.Linear(features, 3, bias=False)
        self.up = nn.Linear(3, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@hostile({"head.base": 5, "head.up": 5}, "a low-rank adapter: two layers add up to the logits")
def low_rank_adapter(classes: int = 5) -> nn.Module:
    return Pair(mlp(), LowRank(8, classes))


@hostile(
    {"head": 8}, "1x1 convolution, ReLU, then pooling; classes = width = height", example=images()
)
class ConvBeforePooling(nn.Module):
    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.trunk, self.head = conv(), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x)).relu().mean((2, 3))


@hostile(
    {"head.0": 8}, "1x1 convolution: segmentation; classes = features = size", example=images()
)
def conv1x1_segmentation(classes: int = 8) -> nn.Module:
    head = nn.Sequential(nn.Conv2d(8, classes, 1), nn.Upsample(scale_factor=2, mode="bilinear"))
    return Pair(conv(), head)


@hostile({"head": 5}, "1x1 convolution on pooled features, flattened", example=images())
def conv1x1_on_pooled_features(classes: int = 5) -> nn.Module:
    trunk = nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1))
    return named(trunk=trunk, head=nn.Conv2d(8, classes, 1), flatten=nn.Flatten())


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@hostile({"head": 5}, "Conv1d of kernel 3 over time; classes = length", example=sequences())
def conv1d_over_time(classes: int = 5) -> nn.Module:
    return named(turn=_Transposed(), head=nn.Conv1d(8, classes, 3, padding=1))


@hostile({"head": 4}, "Conv3d over a clip; classes = frames", example=lambda: random(2, 3, 4, 4, 4))
def conv3d_clip(classes: int = 4) -> nn.Module:
    return named(trunk=nn.Conv3d(3, 8, 1), act=nn.ReLU(), head=nn.Conv3d(8, classes, 1))


@hostile(
    {"head": 8},
    "a transposed convolution: its weight is (in, classes, k, k); classes = features",
    example=images(size=4),
)
def transposed_conv_segmentation(classes: int = 8) -> nn.Module:
    return Pair(conv(), nn.ConvTranspose2d(8, classes, 2, stride=2))


@hostile(
    {"head": 4},
    "a convolution in two groups: seven classes do not divide",
    example=images(size=4),
    replaceable=False,
)
def grouped_conv_head() -> nn.Module:
    return Pair(conv(), nn.Conv2d(8, 4, 1, groups=2))


@hostile({"": 5}, "the model is one Linear layer: the head is the root")
def root_linear(classes: int = 5) -> nn.Module:
    return nn.Linear(8, classes)


@hostile({"": 2}, "the model is one convolution; classes = batch", example=images(size=4))
def root_conv(classes: int = 2) -> nn.Module:
    return nn.Conv2d(3, classes, 3, padding=1)


@hostile({"fc": 5}, "Bilinear: two inputs meet in the head", example=vectors(count=2))
class BilinearHead(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.left, self.right = mlp(), mlp(width=6)
        self.fc = nn.Bilinear(8, 6, classes)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.fc(self.left(left), self.right(right))


class Owner(nn.Module):
    """A layer of a class that nobody knows; subclasses say what it does with its weight."""

    shape = "out, in"

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        size = (classes, features) if self.shape == "out, in" else (features, classes)
        self.weight = nn.Parameter(torch.randn(size))


class MatmulHead(Owner):
    shape = "in, out"

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class FunctionalHead(Owner):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class EinsumHead(Owner):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bf,cf->bc", x, self.weight)


class MulSumHead(Owner):
    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(-1)


class CdistHead(Owner):
    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.weight)


class BroadcastDistanceHead(Owner):
    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.weight).pow(2).sum(-1)


class CosineHead(Owner):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.temperature = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * F.linear(F.normalize(x), F.normalize(self.weight))


@hostile({"head": 8}, "unknown layer: x @ weight, weight is (in, classes); classes = features")
def matmul_head(classes: int = 8) -> nn.Module:
    return Pair(mlp(), MatmulHead(8, classes))


@hostile({"head": 5}, "unknown layer: F.linear on its own weight, no bias")
def functional_head(classes: int = 5) -> nn.Module:
    return Pair(mlp(), FunctionalHead(8, classes))


@hostile({"head": 5}, "einsum over features")
def einsum_head(classes: int = 5) -> nn.Module:
    return Pair(mlp(), EinsumHead(8, classes))


@hostile({"head": 8}, "broadcast multiply, then sum: no matrix product; classes = features")
def mul_sum_head(classes: int = 8) -> nn.Module:
    return Pair(mlp(), MulSumHead(8, classes))


@hostile({"head": 5}, "negative distance to prototypes, by cdist")
def cdist_prototypes(classes: int = 5) -> nn.Module:
    return Pair(mlp(), CdistHead(8, classes))


@hostile({"head": 2}, "squared distance to prototypes, by broadcasting; classes = batch")
def broadcast_prototypes(classes: int = 2) -> nn.Module:
    return Pair(mlp(), BroadcastDistanceHead(8, classes))


@hostile({"head": 5}, "cosine classifier with a learned temperature")
def cosine_with_temperature(classes: int = 5) -> nn.Module:
    return Pair(mlp(), CosineHead(8, classes))


@hostile({"weight": 5}, "a bare parameter of the root, with a bias beside it", follows=("bias",))
class BareParameter(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = mlp()
        self.weight = nn.Parameter(torch.randn(classes, 8))
        self.bias = nn.Parameter(torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.trunk(x), self.weight, self.bias)


@hostile({"weights.out": 5}, "bare parameters in a ParameterDict", follows=("weights.bias",))
class WeightsInDict(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {
                "hidden": nn.Parameter(torch.randn(8, 8)),
                "out": nn.Parameter(torch.randn(8, classes)),
                "bias": nn.Parameter(torch.randn(classes)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weights["hidden"]).relu() @ self.weights["out"] + self.weights["bias"]


class Language(nn.Module):
    """Embedding, a mixing layer over time, an output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 8), nn.GRU(8, 8, batch_first=True)
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.mix(self.embedding(ids))[0])


@hostile(
    {"lm_head": 11},
    "output layer tied to the embedding: its rows are tokens, so 7 would break the input",
    example=tokens(),
    outputs={"output": 2},
    replaceable=False,
)
def tied_language_model() -> nn.Module:
    return Language()


@hostile(
    {"embedding": 11},
    "F.linear with the embedding's own weight: the embedding is the output layer",
    example=tokens(),
    outputs={"output": 2},
    replaceable=False,
)
class EmbeddingAsOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 8), nn.GRU(8, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.mix(self.embedding(ids))[0], self.embedding.weight)


@hostile({"fc": 5}, "the head runs under activation checkpointing")
class CheckpointedHead(Headed):
    def forward(self, x: Tensor) -> Any:
        x = checkpoint(self.trunk, x, use_reentrant=False)
        return checkpoint(self.fc, x, use_reentrant=False)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


class FunctionHead(Owner):
    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight)


@hostile({"head": 5}, "the head is an autograd.Function")
def autograd_function_head(classes: int = 5) -> nn.Module:
    return Pair(mlp(), FunctionHead(8, classes))


@hostile({"fc": 5}, "the head is called once for each row, on vectors without a batch")
class LoopOverBatch(Headed):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(self.trunk(row)) for row in x])


@hostile({"fc": 5}, "bfloat16 throughout", example=lambda: random(2, 8).to(torch.bfloat16))
def bfloat16_model(classes: int = 5) -> nn.Module:
    return Headed(classes).to(torch.bfloat16)


@hostile({"fc": 8}, "float16; classes = features", example=lambda: random(2, 8).to(torch.float16))
def float16_model(classes: int = 8) -> nn.Module:
    return Headed(classes).to(torch.float16)


@hostile(
    {"fc": 5},
    "complex weights, real logits",
    example=lambda: torch.complex(random(2, 8), random(2, 8)),
)
class ComplexModel(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8, dtype=torch.complex64)
        self.fc = nn.Linear(8, classes, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x).tanh()).abs()
