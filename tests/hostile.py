"""Small models that are hard for anything that looks for a head, each with its truth.

This file holds the registry and what the models are made of. ``hostile_structures`` has models
that are hard by how they are put together, ``hostile_layers`` by the layer the head is,
``hostile_outputs`` by what happens behind it, ``hostile_facts`` by what they say of themselves,
``hostile_trunks`` those without a head.
``strategies`` imports all of them.

Truth is what a careful reader of the model would say. ``classes`` in a constructor is the number
of classes: building a model with another number shows which axes, parameters and attributes
have it, without surgery having a say.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Build = TypeVar("Build", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Hostile:
    """One model and the truth about it.

    Attributes:
        name: what it is called in test ids.
        build: makes the model; with ``classes=n`` a twin with another number, if ``has_twin``.
        example: what surgery accepts as an example; batch 2, the same values at every call.
        heads: address of each true head -> what it makes; empty where there is none. The address
            is that of the module that owns the weight (the first one for a shared module), or of
            the parameter where it hangs on a module that holds other things too.
        corroborated: an attribute of the model gives that number of classes.
        outputs: path of each output with a class axis -> that axis, in eval mode.
        replaceable: ``replace_head(model, 7)`` succeeds by the rules; else it is refused with a
            SurgeryError and the model is as it was.
        follows: parameters, buffers and attributes that change with the number of classes.
        candidates: what the walk may name besides ``heads``, never corroborated. In a model
            without heads, ``replaceable`` says that these are taken, with a warning.
        train_heads: heads that run in train mode only.
        train_outputs: ``outputs`` in train mode where they differ, else None.
        note: what makes it hard.
    """

    name: str
    build: Callable[..., nn.Module]
    example: Callable[[], Any]
    heads: Mapping[str, int]
    corroborated: bool
    outputs: Mapping[str, int]
    replaceable: bool = True
    follows: tuple[str, ...] = ()
    candidates: Mapping[str, int] = field(default_factory=dict)
    train_heads: Mapping[str, int] = field(default_factory=dict)
    train_outputs: Mapping[str, int] | None = None
    note: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def has_twin(self) -> bool:
        """Whether ``build`` takes another number of classes."""
        return "classes" in inspect.signature(self.build).parameters

    def make(self, *, seed: int = 0, classes: int | None = None) -> nn.Module:
        """Build it from a seed, leaving the caller's random state alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build() if classes is None else self.build(classes=classes)

    def outputs_in(self, *, training: bool) -> Mapping[str, int]:
        """Path -> class axis in this mode."""
        return self.train_outputs if training and self.train_outputs is not None else self.outputs


REGISTRY: dict[str, Hostile] = {}


def hostile(
    heads: Mapping[str, int],
    note: str,
    *,
    example: Callable[[], Any] | None = None,
    outputs: Mapping[str, int] | None = None,
    corroborated: bool = False,
    **truth: Any,
) -> Callable[[Build], Build]:
    """Register a module class or a builder function; its name in snake case names the model."""

    def register(build: Build) -> Build:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", build.__name__).lower()
        if name in REGISTRY:
            raise ValueError(f"two hostile models are called {name}")
        paths = ({"output": 1} if heads else {}) if outputs is None else outputs
        REGISTRY[name] = Hostile(
            name, build, example or vectors(), heads, corroborated, paths, note=note, **truth
        )
        return build

    return register


def leaves(output: Any, path: str = "output") -> dict[str, Tensor]:
    """Every tensor of an output by path, as ``Leaf.path`` writes it.

    A field of a dataclass or a named tuple (a ``ModelOutput`` is one) is ``output.logits``, a key
    of any other mapping ``output['logits']``, a place in a list or tuple ``output[0]``.
    """
    if isinstance(output, Tensor):
        return {path: output}
    inner: list[tuple[str, Any]] = []
    if is_dataclass(output):
        inner = [(f"{path}.{each.name}", getattr(output, each.name)) for each in fields(output)]
    elif hasattr(output, "_fields"):
        inner = [(f"{path}.{name}", getattr(output, name)) for name in output._fields]
    elif isinstance(output, Mapping):
        inner = [(f"{path}[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, list | tuple):
        inner = [(f"{path}[{place}]", value) for place, value in enumerate(output)]
    return {name: leaf for place, value in inner for name, leaf in leaves(value, place).items()}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def vectors(features: int = 8, count: int = 1) -> Callable[[], Any]:
    """A batch of feature vectors, or a tuple of several equal ones."""
    if count == 1:
        return lambda: random(2, features)
    return lambda: tuple(random(count, 2, features).unbind())


def images(channels: int = 3, size: int = 8) -> Callable[[], Tensor]:
    return lambda: random(2, channels, size, size)


def sequences(features: int = 8, length: int = 5) -> Callable[[], Tensor]:
    return lambda: random(2, length, features)


def tokens(vocabulary: int = 11, length: int = 6) -> Callable[[], Tensor]:
    """Integer tokens; the last of each row is padding (0), the others are not."""

    def example() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(1, vocabulary, (2, length), generator=generator)
        drawn[:, -1] = 0
        return drawn

    return example


def mlp(features: int = 8, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU())


def conv(channels: int = 3, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())


class Headed(nn.Module):
    """A trunk of 8 features and a linear head, for models that differ from it in one thing."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = mlp()
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.trunk(x))


class Pair(nn.Module):
    """A trunk and a head of any kind."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.trunk(x))


def named(**layers: nn.Module) -> nn.Sequential:
    """A Sequential whose layers have names."""
    found = nn.Sequential()
    for name, layer in layers.items():
        found.add_module(name, layer)
    return found
