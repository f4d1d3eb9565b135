"""The modules that an attached head consists of, where a model has no place for one."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from surgery.errors import PlanError

Pool: TypeAlias = Literal["mean", "max", "first", "last"]
POOLS: tuple[Pool, ...] = ("mean", "max", "first", "last")

_PART = re.compile(r"\.(?P<name>\w+)|\[(?P<key>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+)\]")


class Pooled(nn.Module):
    """Makes one vector for each sample out of features of many places or words.

    Args:
        how: ``mean`` or ``max`` over all of them; ``first`` (a class token) or ``last`` of them.
        axis: where the channels are; the first axis holds the samples, all others the places.

    Example:
        >>> import torch
        >>> from surgery.operations.attached import Pooled
        >>> Pooled("mean", 1)(torch.zeros(2, 16, 7, 7)).shape
        torch.Size([2, 16])
    """

    def __init__(self, how: Pool, axis: int) -> None:
        super().__init__()
        self.how = how
        self.axis = axis

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pool features.

        Args:
            features: of shape [samples, ...] with the channels at ``axis``.
            mask: [samples, places], zero where a place is padding and does not count; only for
                features of three axes.

        Returns:
            [samples, channels].
        """
        axes = [axis for axis in range(1, features.dim()) if axis != self.axis]
        if mask is not None:
            return self._masked(features, mask)
        if self.how == "mean":
            return features.mean(axes)
        if self.how == "max":
            return features.amax(axes)
        return features.select(axes[0], 0 if self.how == "first" else -1)

    def _masked(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counts = mask != 0
        if self.how in ("mean", "max"):
            padding = ~counts.unsqueeze(self.axis)
            places = 3 - self.axis
            if self.how == "max":
                largest = features.masked_fill(padding, -torch.inf).amax(places)
                # Where all is padding nothing is the largest, and an infinity would spread.
                return largest.masked_fill(~counts.any(1, keepdim=True), 0)
            # A sum of many numbers is more than half precision holds.
            wide = torch.promote_types(features.dtype, torch.float32)
            number = counts.sum(1, keepdim=True).clamp_min(1)
            total = features.masked_fill(padding, 0).sum(places, dtype=wide)
            return (total / number).to(features.dtype)
        length = counts.shape[1]
        ranks = torch.arange(length, device=mask.device)
        ranks = length - ranks if self.how == "first" else ranks + 1
        chosen = (counts * ranks).argmax(1)
        rows = torch.arange(features.shape[0], device=mask.device)
        return features.movedim(self.axis, -1)[rows, chosen]

    def extra_repr(self) -> str:
        """What printing a model shows of it."""
        return f"{self.how!r}, axis={self.axis}"


class Headed(nn.Module):
    """A model with a head behind it: what comes out are the classes.

    ``surgery.replace_head(model, n, attach=True)`` makes it where the model's own class has no
    place for a head. It takes the arguments of the model, which it holds unchanged.

    Args:
        backbone: the model.
        head: what makes classes of pooled features.
        pool: what pools the features.
        path: which of the outputs the features are: ``output``, ``output.pooler_output``,
            ``output[0]``.
        mask: the argument that says which places count, where there is one, and its position;
            None where it is only given by name.
        num_classes: how many classes the head makes.
        classes: their names.

    Attributes:
        backbone: the model.
        pool: a ``Pooled``, or an ``Identity`` where the features are pooled already.
        head: the layer, or the layers, that make the classes.
        num_classes: how many.
        classes: their names, or None.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from surgery.operations.attached import Headed, Pooled
        >>> model = Headed(nn.Conv2d(3, 8, 3), nn.Linear(8, 5), Pooled("mean", 1))
        >>> model(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        pool: nn.Module | None = None,
        *,
        path: str = "output",
        mask: tuple[str, int | None] | None = None,
        num_classes: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = nn.Identity() if pool is None else pool
        self.head = head
        self.way = way(path)
        self.mask = mask
        self.num_classes = num_classes
        self.classes = None if classes is None else list(classes)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the model on its own arguments, and the head on the features.

        Returns:
            Class scores, [samples, classes].
        """
        features: Any = self.backbone(*args, **kwargs)
        for kind, key in self.way:
            features = getattr(features, key) if kind == "name" else features[key]
        mask = self._mask(args, kwargs)
        pooled = self.pool(features) if mask is None else self.pool(features, mask)
        scores: torch.Tensor = self.head(pooled)
        return scores

    def _mask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
        if self.mask is None:
            return None
        name, position = self.mask
        found = kwargs.get(name)
        if position is not None and position < len(args):
            found = args[position]
        # Attention takes masks of other forms as well, which say nothing of single words.
        return found if isinstance(found, torch.Tensor) and found.dim() == 2 else None


def way(path: str) -> tuple[tuple[str, Any], ...]:
    """The attributes and entries that lead to one tensor of an output.

    Args:
        path: as graphs spell it.

    Returns:
        Pairs of ``name`` or ``item`` and what is read.

    Raises:
        PlanError: it holds keys that are neither text nor numbers.

    Example:
        >>> way("output.stages[0]['a']")
        (('name', 'stages'), ('item', 0), ('item', 'a'))
    """
    rest = path.removeprefix("output")
    found: list[tuple[str, Any]] = []
    while rest:
        part = _PART.match(rest)
        if part is None:
            raise PlanError(
                "this output is behind a key that is neither text nor a number",
                where=path,
                expected="attributes, entries of dicts by text, and of lists by number",
                found=rest,
                fix="let forward return it under another key",
            )
        name, key = part["name"], part["key"]
        found.append(("item", ast.literal_eval(key)) if name is None else ("name", name))
        rest = rest[part.end() :]
    return tuple(found)
