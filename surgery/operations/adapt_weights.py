"""Bring a tensor to the shape that a model wants, where what the shapes differ in says how."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from surgery import tree
from surgery.errors import AddressError, ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.operations.agree import known_names
from surgery.operations.channels import exact
from surgery.operations.ends import Ends, find_ends, recorded
from surgery.operations.names import remembered
from surgery.operations.normalisation import make_recipe
from surgery.operations.resolution import resampled
from surgery.patterns import fitting
from surgery.weights.verdicts import Mismatch

Names: TypeAlias = "tuple[str, ...] | None"

# Entries in front that belong to no cell of a grid: none, a class token, a distillation token.
_TOKENS = (0, 1, 2)
_INTERPOLATED = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(eq=False)
class Adapter:
    """Makes tensors of the model's shape out of a source's.

    Attributes:
        model: the model, out of its wrappers.
        registry: the plugins to ask.
        source_names: what the classes of the source are called, by their number.
        remarks: what was done, in words; filled along the way.
    """

    model: nn.Module
    registry: Registry
    source_names: Callable[[int], Names]
    remarks: list[str] = field(default_factory=list)
    _ends: list[Ends | None] = field(default_factory=list)

    def __call__(
        self, mismatch: Mismatch, theirs: torch.Tensor, ours: torch.Tensor
    ) -> torch.Tensor:
        """A tensor of the model's shape.

        Args:
            mismatch: where it goes, and both shapes.
            theirs: a copy of the source's tensor.
            ours: a copy of the model's.

        Raises:
            ArgumentError: nothing says how it would be adapted.
            PlanError: names of classes are missing, or have nothing in common.
        """
        old, new = tuple(theirs.shape), tuple(ours.shape)
        axes = [axis for axis, sizes in enumerate(zip(old, new, strict=False)) if len({*sizes}) > 1]
        addresses = self._addresses(mismatch.key)
        ends = self.ends
        owner = self._owner(mismatch.key)
        convolves = len(old) > 2 and isinstance(owner, nn.modules.conv._ConvNd)
        if len(old) == len(new) and theirs.is_floating_point():
            if axes == [0] and ends is not None and ends.is_head(addresses):
                return self._rows(mismatch, theirs, ours)
            if convolves and 0 not in axes:
                reads_input = ends is not None and ends.is_input(addresses)
                if 1 not in axes or reads_input:
                    return self._filter(mismatch, theirs, ours)
            if axes == [len(old) - 2] and _may_hold_positions(owner):
                return self._positions(mismatch, theirs, ours)
        raise ArgumentError(
            "nothing says how this tensor would be adapted",
            where=f"on_mismatch at {mismatch.key}",
            expected="another number of input channels, another kernel size, positions on another "
            "grid, or other classes with names",
            found=f"{list(old)} in the source, {list(new)} in the model",
            fix=f"on_mismatch={{{mismatch.key!r}: 'skip'}}, or a callable "
            "(lambda address, theirs, ours: theirs[: len(ours)])",
        )

    @property
    def ends(self) -> Ends | None:
        """The heads and first layers of the model, found once."""
        if not self._ends:
            self._ends.append(find_ends(self.model, self.registry))
        return self._ends[0]

    def inside(self, mismatched: Sequence[Mismatch], on_mismatch: object) -> list[Mismatch]:
        """What is skipped for its shape and lies neither at a head nor at the input.

        Args:
            mismatched: what does not fit.
            on_mismatch: what the caller said; patterns of layers are taken as meant.
        """
        skipped = [item for item in mismatched if item.policy == "skip"]
        if isinstance(on_mismatch, Mapping):
            keys = [item.key for item in skipped]
            meant = [fitting(pattern, "on_mismatch") for pattern in on_mismatch if pattern != "*"]
            named = {key for key in keys if any(fits(key) for fits in meant)}
            skipped = [item for item in skipped if item.key not in named]
        # Were a layer in the middle of another width, the next one would differ in what it reads.
        if all(_only_rows_differ(item) for item in skipped) or self.ends is None:
            return []
        return [item for item in skipped if not self._is_at_an_end(item)]

    def _is_at_an_end(self, item: Mismatch) -> bool:
        addresses = self._addresses(item.key)
        ends = self.ends
        return ends is None or ends.is_head(addresses) or ends.is_input(addresses)

    def _addresses(self, address: str) -> tuple[str, ...]:
        try:
            return tree.index(self.model).addresses(tree.get(self.model, address))
        except AddressError:
            # A state dict may hold what the model computes for it.
            return (address,)

    def _owner(self, address: str) -> nn.Module:
        return tree.get_module(self.model, tree.split(address)[0])

    def _rows(self, mismatch: Mismatch, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
        """The rows of classes that both sides know by name; the others stay the model's."""
        before = self.source_names(len(theirs))
        after = self._model_names(mismatch, len(ours))
        if ours.is_meta:
            raise PlanError(
                "classes that the source does not have would be left without values",
                where=mismatch.key,
                expected="a model with values",
                found="a tensor on meta",
                fix="surgery.build(target, weights=source)",
            )
        for names, whose in ((before, "the source's"), (after, "the model's")):
            if names is None:
                raise PlanError(
                    f"{whose} classes have no names, so their rows cannot be told apart",
                    where=mismatch.key,
                    expected="names of the classes on both sides",
                    found=f"{len(theirs)} classes in the source, {len(ours)} in the model",
                    fix="surgery.replace_head(model, classes=['cat', 'dog']), and as the source a "
                    "model that knows its classes, or an entry that lists them",
                )
        return self._by_name(mismatch, theirs, ours, before or (), after or ())

    def _by_name(
        self,
        mismatch: Mismatch,
        theirs: torch.Tensor,
        ours: torch.Tensor,
        before: Sequence[str],
        after: Sequence[str],
    ) -> torch.Tensor:
        times = Counter(before)
        place = {name: row for row, name in enumerate(before) if times[name] == 1}
        rows = [(row, place[name]) for row, name in enumerate(after) if name in place]
        if not rows:
            raise PlanError(
                "no class of the model has a name of the source",
                where=mismatch.key,
                expected=f"some of {', '.join(before[:6])}, ...",
                found=", ".join(after[:6]),
                fix=f"on_mismatch={{{mismatch.key!r}: 'skip'}}",
            )
        mine, others = zip(*rows, strict=True)
        made = ours.clone()
        made[list(mine)] = theirs[list(others)].to(made)
        stayed = [name for name in after if name not in place]
        kept = f"; {', '.join(stayed[:6])} as they were" if stayed else ""
        self.remarks.append(f"{mismatch.key}: {len(rows)} rows by class name{kept}")
        return made

    def _model_names(self, mismatch: Mismatch, count: int) -> Names:
        names = remembered(self.model)
        if names is not None and len(names) == count:
            return names
        return told_names(self.model, count, self.registry)

    def _filter(self, mismatch: Mismatch, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
        """A convolution's weight with other input channels, or another kernel size."""
        made = exact(theirs)
        if made.shape[2:] != ours.shape[2:]:
            made = _kernel(made, tuple(ours.shape[2:]), mismatch.key)
            sizes = " by ".join(map(str, ours.shape[2:]))
            self.remarks.append(f"{mismatch.key}: kernels interpolated to {sizes}")
        old, new = made.shape[1], ours.shape[1]
        if old != new:
            scale = make_recipe(old, new, "auto", None, None).scale
            factors = torch.tensor(scale, dtype=made.dtype, device=made.device)
            made = torch.einsum("nc,oc...->on...", factors, made)
            self.remarks.append(f"{mismatch.key}: {old} input channels became {new}")
        return made.to(theirs.dtype)

    def _positions(
        self, mismatch: Mismatch, theirs: torch.Tensor, ours: torch.Tensor
    ) -> torch.Tensor:
        """Position embeddings, or a table of relative positions, on another grid."""
        old, new = theirs.shape[-2], ours.shape[-2]
        grids = [
            (tokens, math.isqrt(old - tokens), math.isqrt(new - tokens))
            for tokens in _TOKENS
            if _is_square(old - tokens) and _is_square(new - tokens)
        ]
        if len(grids) != 1:
            raise ArgumentError(
                "these positions lie on no square grid"
                if not grids
                else "these positions may lie on several grids",
                where=f"on_mismatch at {mismatch.key}",
                expected="rows and columns of one number, behind 0 to 2 tokens, on both sides",
                found=f"{old} positions in the source, {new} in the model",
                fix="surgery.adapt_input(model, image_size=...) after loading at the old size",
            )
        tokens, before, after = grids[0]
        lined = theirs.movedim(-2, 0)
        cells = resampled(lined[tokens:], (before, before), (after, after), mismatch.key)
        self.remarks.append(
            f"{mismatch.key}: positions interpolated from {before} by {before} to {after} by "
            f"{after}" + (f", {tokens} in front as they were" if tokens else "")
        )
        return torch.cat([lined[:tokens], cells.to(theirs.dtype)]).movedim(0, -2).contiguous()


def told_names(model: nn.Module, count: int, registry: Registry) -> Names:
    """The names of so many classes, as a model's own attributes and configuration list them."""
    known = recorded(model, registry)
    for head in known.heads if known is not None else ():
        if known is not None and head.num_classes == count:
            names = known_names(tree.unwrap(model), known.facts, head)
            if names is not None:
                return names
    return None


def _only_rows_differ(item: Mismatch) -> bool:
    return item.expected[1:] == item.found[1:] and len(item.expected) == len(item.found)


def _may_hold_positions(owner: nn.Module) -> bool:
    """Whether a layer keeps no weight that it multiplies with: an embedding, or a model's own."""
    return isinstance(owner, nn.Embedding) or not type(owner).__module__.startswith("torch.nn.")


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _kernel(weight: torch.Tensor, size: tuple[int, ...], address: str) -> torch.Tensor:
    """A weight with kernels of another size, interpolated linearly along each axis."""
    mode = _INTERPOLATED.get(len(size))
    if mode is None or weight.is_complex():
        raise ArgumentError(
            "such kernels cannot be interpolated",
            where=f"on_mismatch at {address}",
            expected="real kernels of one to three axes",
            found=f"{list(weight.shape)} in {weight.dtype}",
            fix=f"on_mismatch={{{address!r}: 'skip'}}",
        )
    before, after = math.prod(weight.shape[2:]), math.prod(size)
    fewer = mode == "bilinear" and any(n < o for n, o in zip(size, weight.shape[2:], strict=True))
    made = functional.interpolate(
        weight, size=size, mode=mode, align_corners=False, antialias=fewer
    )
    # Kernels add up what they see: as many more cells, so much smaller each.
    return made * (before / after)
