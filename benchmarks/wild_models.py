"""What a model of the wild is: how it is made with so many classes, and what it is given.

The models are tables, by library, in `wild_images.py` and `wild_sequences.py`. No library is
imported before one of its models is made, and each makes its models without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

Make = Callable[[int], nn.Module]
Inputs = Callable[[], Any]


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        make: the model, from a number of classes.
        inputs: what forward is given: a tensor, a tuple of arguments or a dict of keywords.
        meta: made on ``meta``, because it is large; what computes on its values is made for real.
        apart: patterns of parameters whose shapes follow the number when the model is made, and
            not when its head is replaced.
        why: the reason for those.
    """

    make: Make
    inputs: Inputs
    meta: bool = False
    apart: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Library:
    """The models of one library.

    Attributes:
        install: what ``pip install --no-deps`` is given, the library's distribution first: torch
            stays as it is, and what is still missing then is the reason in its rows.
        subjects: its models by name.
    """

    install: tuple[str, ...]
    subjects: Mapping[str, Subject] = field(repr=False)

    @property
    def version(self) -> str:
        """What is installed, or that nothing is."""
        return f"{self.install[0]} {self.installed or 'missing'}"

    @property
    def installed(self) -> str | None:
        """The installed version."""
        try:
            return metadata.version(self.install[0])
        except metadata.PackageNotFoundError:
            return None


def of(path: str, *args: Any, to: str = "num_classes", **settings: Any) -> Make:
    """A model from ``module:name``, whose argument ``to`` is the number of classes."""
    return lambda classes: resolve_name(path)(*args, **{to: classes}, **settings)


def noise(*shape: int) -> Inputs:
    """Random numbers of one shape."""
    return partial(torch.randn, *shape)


def tokens(vocabulary: int = 30, batch: int = 2, length: int = 8) -> Inputs:
    """Random words."""
    return partial(torch.randint, 1, vocabulary, (batch, length))


def square(side: int, channels: int = 3, batch: int = 2) -> Inputs:
    """Random images."""
    return noise(batch, channels, side, side)


def words(text: str) -> list[str]:
    """The names in a text."""
    return text.split()


def each(names: Iterable[str], make: Callable[[str], Subject]) -> dict[str, Subject]:
    """The subjects of these names."""
    return {name: make(name) for name in names}


VOCABULARY = "the number is that of its input words as well, whose embedding stays"
WIDTH = "the layer before the head is as wide as there are classes, and stays as wide as it is"
UNSEEN = (
    "forward runs these heads and returns what they make only in another mode, which the example "
    "does not show; the plan's notes name them"
)
